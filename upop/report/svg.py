"""Charts of matplotlib as SVG that lives inside a page: its text is text, its colours are the page's, its ids its own.

matplotlib knows no CSS, so a chart is drawn in stand-in colours, each of which becomes a variable of the page: one
picture serves light and dark mode. Fonts are the page's too.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.text import Text

from upop.report.markup import element, legal

VARIABLES = ("ink", "muted", "grid", "vision", "text", "fusion", *(f"series-{number}" for number in range(1, 7)))
COLOUR = {name: f"#0000{number:02x}" for number, name in enumerate(VARIABLES, start=1)}
"""Stand-in colour of each variable that assets/page.css defines."""
SERIES = [COLOUR[name] for name in VARIABLES if name.startswith("series-")]
WIDTH = 3.6  # inches; on a phone or in a column of the page, 8 points of it become 11 to 13 pixels
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "upop",  # the same ids every time
    "text.parse_math": False,  # a run may be called $x
    "text.color": COLOUR["ink"],
    "axes.labelcolor": COLOUR["ink"],
    "axes.edgecolor": COLOUR["muted"],
    "axes.facecolor": "none",
    "axes.titlecolor": COLOUR["ink"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": COLOUR["muted"],
    "ytick.color": COLOUR["muted"],
    "xtick.labelcolor": COLOUR["ink"],
    "ytick.labelcolor": COLOUR["ink"],
    "grid.color": COLOUR["grid"],
    "grid.linewidth": 0.8,
    "font.size": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
}
SVG = "{http://www.w3.org/2000/svg}"
LINK = "{http://www.w3.org/1999/xlink}href"


def picture(identifier: str, title: str, description: str, height: float, draw: Callable[[Axes], None]) -> Element:
    """A chart as a figure with a caption.

    Args:
        identifier: Unique on the page.
        title: What the chart shows; its caption.
        description: What it says, for who does not see it.
        height: Inches, at a width of :data:`WIDTH`.
        draw: Fills the axes, in colours of :data:`COLOUR`.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), facecolor="none", layout="constrained")
        draw(figure.subplots())
        for text in figure.findobj(Text):
            text.set_text(legal(text.get_text()))
        written = io.BytesIO()
        FigureCanvasSVG(figure).print_svg(written, metadata={"Date": None})
    made = _inline(ElementTree.fromstring(written.getvalue()), identifier)
    made.attrib |= {"role": "img", "aria-labelledby": f"{identifier}-title {identifier}-text"}
    made.insert(0, element("title", title, id=f"{identifier}-title"))
    made.insert(1, element("desc", description, id=f"{identifier}-text"))
    return element("figure", element("figcaption", title), made)


def _inline(svg: Element, identifier: str) -> Element:
    """What matplotlib wrote, without what belongs to a file of its own: sizes, metadata, styles and unused ids."""
    used = set(re.findall(r"[#(]#?([\w.]+)\)?", " ".join(_references(svg))))
    for name in ("width", "height", "version"):
        svg.attrib.pop(name, None)
    for parent in list(svg.iter()):
        for child in list(parent):
            if child.tag in (f"{SVG}metadata", f"{SVG}style"):
                parent.remove(child)
    for node in svg.iter():
        node.tag = node.tag.removeprefix(SVG)
        node.text = node.text if node.tag == "text" else None
        node.tail = None
        node.attrib = {name.replace(LINK, "href"): value for name, value in node.items()}
        if node.get("id") not in used:
            node.attrib.pop("id", None)
        for name, value in list(node.items()):
            node.set(name, _value(name, value, identifier))
        if node.get("transform", "").startswith("rotate(-0 "):
            del node.attrib["transform"]
    return svg


def _references(svg: Element) -> list[str]:
    return [value for node in svg.iter() for value in node.attrib.values() if value.startswith(("#", "url(#"))]


def _value(name: str, value: str, identifier: str) -> str:
    """An attribute as the page wants it."""
    if name == "id":
        return f"{identifier}-{value}"
    if value.startswith(("#", "url(#")):
        return value.replace("#", f"#{identifier}-", 1)
    if name == "style":
        for variable, colour in COLOUR.items():
            value = value.replace(colour, f"var(--{variable})")
        return re.sub(r"font-family: [^;]*(; )?", "", value)
    if name in ("d", "x", "y", "transform"):
        return re.sub(r"-?\d+\.\d{2,}", lambda number: f"{float(number[0]):.2f}", " ".join(value.split()))
    return value
