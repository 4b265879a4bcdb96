import html

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upop.report.markup import Cell, details, element, table, to_html

from .reading import read, tables, values


@given(st.text(), st.text(), st.text())
def test_whatever_goes_in_comes_out_as_text(before, inside, after):
    root = read(to_html(element("p", before, element("b", inside, title=inside), after)))
    (paragraph,), (bold,) = root.all("p"), root.all("b")
    assert len(root.nodes()) == 2
    same = [text for text in (before + inside + after,) if text.isprintable()]
    assert not same or paragraph.text == same[0]
    assert not inside.isprintable() or bold.attributes["title"] == inside


def test_control_characters_are_replaced():
    assert to_html(element("p", "a\x00b\x1bc\ud800\n")) == "<p>a&#65533;b&#65533;c&#65533;\n</p>"
    assert to_html(element("p", "\ufffe\uffff", title="\x00")) == '<p title="&#65533;">&#65533;&#65533;</p>'


def test_a_script_stays_text():
    made = to_html(element("td", "</td><script>alert(1)</script>"))
    assert made == f"<td>{html.escape('</td><script>alert(1)</script>')}</td>"


def test_a_table_has_headings_and_exact_numbers():
    rows = [["a<b", Cell("1.5 K", 1500), "x"], ["c", Cell("-"), "y"]]
    root = read(to_html(table("what & where", ["", "size", "name"], rows)))
    head, *body = tables(root)["what & where"]
    assert [(cell.tag, cell.attributes["scope"]) for cell in head] == [("th", "col")] * 3
    assert [cell.attributes["class"] for cell in head] == ["word", "number", "word"]
    assert [(row[0].tag, row[0].attributes["scope"], row[0].text) for row in body] == [
        ("th", "row", "a<b"), ("th", "row", "c"),
    ]  # fmt: skip
    assert [values(row) for row in body] == [[1500.0, "x"], ["-", "y"]]
    (box,) = root.all("div")
    assert (box.attributes["tabindex"], box.attributes["aria-label"]) == ("0", "what & where")


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="zip"):
        table("x", ["a", "b"], [["1", "2", "3"]])


def test_details_unfold():
    root = read(to_html(details("more", element("p", "text"))))
    assert [node.tag for node in root.nodes()] == ["details", "summary", "p"]
