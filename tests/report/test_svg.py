import re

import matplotlib
import pytest

from upop.report.markup import to_html
from upop.report.svg import COLOUR, VARIABLES, picture

from .reading import read


def draw(axes):
    axes.plot([0, 1], [2, 3], color=COLOUR["vision"], marker="o", label="$x < <b>")
    axes.barh([2], [1], color=COLOUR["series-6"], alpha=0.5)
    axes.set_xlabel("step")
    axes.legend()


def made(identifier="one"):
    return to_html(picture(identifier, "a title", "what & why", 2.0, draw))


def test_it_is_text_with_a_title_and_a_description():
    root = read(made())
    (svg,) = root.all("svg")
    assert svg.attributes["role"] == "img"
    texts = {node.attributes["id"]: node.text for node in (*svg.all("title"), *svg.all("desc"))}
    assert texts == {"one-title": "a title", "one-text": "what & why"}
    assert svg.attributes["aria-labelledby"].split() == list(texts)
    assert {"$x < <b>", "step"} <= {node.text for node in svg.all("text")}
    assert root.all("figcaption")[0].text == "a title"
    assert "viewbox" in svg.attributes
    assert not {"width", "height"} & set(svg.attributes)


def test_its_colours_are_the_page_s():
    used = set(re.findall(r"var\(--([\w-]+)\)", made()))
    assert used <= set(VARIABLES)
    assert {"ink", "muted", "vision", "series-6"} <= used
    assert not re.findall(r"#[0-9a-f]{6}\b", made()), "a colour that dark mode cannot change"
    assert len(set(COLOUR.values())) == len(VARIABLES)
    assert "font-family" not in made()


def test_ids_are_its_own_and_every_reference_is_met():
    one, two = read(made("one")), read(made("two"))
    ids = [{node.attributes["id"] for node in root.nodes() if "id" in node.attributes} for root in (one, two)]
    assert not ids[0] & ids[1]
    referred = set(re.findall(r'"#([^"]+)"|url\(#([^)]+)\)', made("one")))
    assert referred
    assert {first or second for first, second in referred} <= ids[0]


def test_it_stands_alone_and_is_always_the_same():
    assert not re.search(r"https?:", made())
    assert not re.search("<(metadata|style|script)", made())
    assert made() == made()
    expected = made()
    with matplotlib.rc_context({"font.size": 30.0, "text.color": "red"}):
        assert made() == expected


def test_what_cannot_be_drawn_leaves_no_setting_behind():
    before = dict(matplotlib.rcParams)
    with pytest.raises(ZeroDivisionError):
        picture("x", "", "", 2.0, lambda axes: 1 / 0)
    assert dict(matplotlib.rcParams) == before
