"""HTML as a tree of elements, so that whatever comes from a file is escaped by the writer and never by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from unicodedata import category
from xml.etree import ElementTree
from xml.etree.ElementTree import Element


@dataclass(frozen=True)
class Cell:
    """A number in a table: shown for people, with its exact value for sorting and copying.

    Attributes:
        text: What is shown.
        value: The number; ``None`` where it was not measured.
    """

    text: str
    value: float | None = None


def element(tag: str, *children: Element | str, **attributes: str) -> Element:
    """An element with its children; ``class_`` and ``aria_label`` become ``class`` and ``aria-label``.

    >>> to_html(element("p", "a < b ", element("b", "so"), ".", class_="x"))
    '<p class="x">a &lt; b <b>so</b>.</p>'
    """
    made = Element(tag, {name.rstrip("_").replace("_", "-"): legal(value) for name, value in attributes.items()})
    last = None
    for child in children:
        if isinstance(child, Element):
            made.append(child)
            last = child
        elif last is None:
            made.text = (made.text or "") + legal(child)
        else:
            last.tail = (last.tail or "") + legal(child)
    return made


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[Cell | str]]) -> Element:
    """A table in a box that scrolls sideways, its first column heading the rows.

    Columns with a number are flush right; the page's script makes every table sortable and copyable.

    Args:
        caption: What the table shows.
        head: Names of the columns.
        rows: Cells, as many as ``head`` in each row.
    """
    numeric = [any(isinstance(row[column], Cell) for row in rows) for column in range(len(head))]
    top = [element("th", name, scope="col", class_=_side(right)) for name, right in zip(head, numeric, strict=True)]
    body = [element("tr", *(_cell(cell, *place) for cell, place in _places(row, numeric))) for row in rows]
    parts = [
        element("caption", element("span", caption)),
        element("thead", element("tr", *top)),
        element("tbody", *body),
    ]
    return element("div", element("table", *parts), class_="scroll", role="region", aria_label=caption, tabindex="0")


def details(summary: str, *children: Element) -> Element:
    """Something to unfold."""
    return element("details", element("summary", summary), *children)


def to_html(made: Element) -> str:
    """The text of an element and all below it, in ASCII, so that no encoding can spoil it."""
    return ElementTree.tostring(made, encoding="us-ascii", method="html").decode("ascii")


def _places(row: Sequence[Cell | str], numeric: Sequence[bool]) -> list[tuple[Cell | str, tuple[bool, bool]]]:
    return [(cell, (number == 0, right)) for number, (cell, right) in enumerate(zip(row, numeric, strict=True))]


def _cell(cell: Cell | str, first: bool, right: bool) -> Element:
    exact = {"data_value": repr(cell.value)} if isinstance(cell, Cell) and cell.value is not None else {}
    text = cell.text if isinstance(cell, Cell) else cell
    if first:
        return element("th", text, scope="row", **exact)
    return element("td", text, class_=_side(right), **exact)


def _side(right: bool) -> str:
    return "number" if right else "word"


def legal(text: str) -> str:
    """``text`` without the control characters, half characters and non-characters that no file of text may hold."""
    return "".join("\ufffd" if _illegal(letter) else letter for letter in text)


def _illegal(letter: str) -> bool:
    return (category(letter) in ("Cc", "Cs") and letter not in "\n\t") or ord(letter) & 0xFFFE == 0xFFFE
