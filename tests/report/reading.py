"""A page read back by the standard library's parser, as a tree that is refused where tags do not match."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "br", "link", "img", "hr", "input", "col"}


@dataclass
class Node:
    tag: str
    attributes: dict[str, str | None] = field(default_factory=dict)
    children: list[Node | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def nodes(self) -> list[Node]:
        below = [child for child in self.children if isinstance(child, Node)]
        return [node for child in below for node in (child, *child.nodes())]

    def all(self, tag: str) -> list[Node]:
        return [node for node in self.nodes() if node.tag == tag]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Node("#root")
        self.open = [self.root]

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert len(attributes) == len(dict(attributes)), f"<{tag}> repeats an attribute: {attributes}"
        node = Node(tag, dict(attributes))
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read(html: str) -> Node:
    """The tree of a page whose tags all match."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == [reader.root], f"<{reader.open[-1].tag}> is never closed"
    return reader.root


def tables(root: Node) -> dict[str, list[list[Node]]]:
    """Rows of cells of every table, the heading first, by caption."""
    rows = {one.all("caption")[0].text: one.all("tr") for one in root.all("table")}
    return {
        caption: [[cell for cell in row.children if isinstance(cell, Node)] for row in found]
        for caption, found in rows.items()
    }


def values(row: list[Node]) -> list[float | str | None]:
    """Exact numbers of a row behind its heading; the text where a cell is no number."""
    exact = [cell.attributes.get("data-value") for cell in row[1:]]
    return [float(number) if number is not None else cell.text for number, cell in zip(exact, row[1:], strict=True)]
