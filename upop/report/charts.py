"""The charts of one run: what is kept in each layer, how the search got there, and what the states are worth.

Every chart is narrow enough for a phone and says in words what it shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from xml.etree.ElementTree import Element

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from upop.report.facts import LAST, KeptSite, Run, label, shown
from upop.report.paths import role, stack
from upop.report.svg import COLOUR, picture
from upop.report.tables import CURRENCY
from upop.structure import MODALITIES

Point = tuple[float, float]
UNITS = {"head": "attention heads", "head_dim": "attention head-dim positions", "neuron": "MLP neurons"}


def kept(identifier: str, title: str, sites: Sequence[KeptSite]) -> Element:
    """Units kept in each layer: a bar a layer, from the first at the top, in an outline of 100 %.

    Args:
        identifier: Unique on the page.
        title: Which part of the model it is.
        sites: One site a layer, of one kind and modality.
    """
    texts = [f"{site.units_kept:,} / {site.units:,}" for site in sites]
    parts = [f"layer {site.depth}: {text}" for site, text in zip(sites, texts, strict=True)]
    shares = [100 * site.units_kept / site.units for site in sites]

    def draw(axes: Axes) -> None:
        rows = range(len(sites))
        axes.barh(rows, [100] * len(sites), 0.72, color=COLOUR["grid"])
        axes.barh(rows, shares, 0.72, color=COLOUR.get(sites[0].modality, COLOUR["muted"]))
        for row, text in zip(rows, texts, strict=True):
            axes.text(104, row, text, va="center", fontsize=8)
        axes.set_yticks(rows, [str(site.depth) for site in sites])
        axes.set_xticks([0, 25, 50, 75, 100])
        axes.set_xlim(0, 104 + 5.2 * max(map(len, texts)))
        axes.set_ylim(len(sites) - 0.4, -0.6)
        axes.set_xlabel("units kept, %", loc="left")
        axes.set_ylabel("layer")
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.tick_params(length=0)

    return picture(identifier, title, f"Units kept of those there were. {'; '.join(parts)}.", _height(len(sites)), draw)


def towers(identifier: str, sites: Sequence[KeptSite]) -> dict[str, list[Element]]:
    """The charts of :func:`kept` by tower, vision first: one for each stack of layers, kind and role in it."""
    groups: dict[str, dict[tuple[str, str, str], list[KeptSite]]] = {}
    for site in sorted(sites, key=lambda one: MODALITIES.index(one.modality) if one.modality in MODALITIES else 9):
        panel = groups.setdefault(site.modality, {})
        panel.setdefault((stack(site.block), site.kind, role(site.block)), []).append(site)
    charts: dict[str, list[Element]] = {}
    for tower, panels in groups.items():
        for (part, kind, place), layers in panels.items():
            layers.sort(key=lambda one: one.depth)
            number = sum(map(len, charts.values())) + 1
            title = f"{tower}: {UNITS.get(kind, kind)} ({part}, {place})"
            charts.setdefault(tower, []).append(kept(f"{identifier}-{number}", title, layers))
    return charts


def search(identifier: str, run: Run) -> list[Element]:
    """The search over time: fraction removed, its split over the towers, task loss, and units that came back."""
    of = str(run.facts.get("of", "params"))
    of = of if of in CURRENCY else "params"
    whole = {CURRENCY[name]: _points(run, f"removed/{name}", 100) for name in CURRENCY}
    split: dict[str, list[Point]] = {name: _points(run, f"removed/{of}/{name}", 100) for name in MODALITIES}
    goal = None if run.target is None else 100 * run.target
    charts = [
        _lines(f"{identifier}-removed", "removed over the search", "removed, %", whole, goal),
        _lines(f"{identifier}-towers", f"{CURRENCY[of]} removed from each tower", "removed, %", split),
        _lines(f"{identifier}-loss", "task loss", "task loss", {"loss": _points(run, "loss")}),
        _bars(f"{identifier}-returned", "units returned per update", _points(run, "units_returned")),
    ]
    return [chart for chart in charts if chart is not None]


def metrics(identifier: str, run: Run) -> Element | None:
    """Every metric of the dense, the cut and the retrained model, a row a metric; ``None`` without metrics.

    Of a run that is not finished, the metrics that two states have.
    """
    least, states = (2, list(run.states)) if run.unfinished else (1, [LAST])
    keys = [key for key in run.metrics if sum(run.value(state, key) is not None for state in states) >= least]
    if not keys:
        return None
    marks = {"dense": "o", "cut": "x", LAST: "o"}
    parts = [f"{label(key)}: " + ", ".join(f"{s} {shown(key, run.value(s, key))}" for s in run.states) for key in keys]

    def draw(axes: Axes) -> None:
        for row, key in enumerate(keys):
            values = [value for state in marks if (value := run.value(state, key)) is not None]
            axes.plot([min(values), max(values)], [row, row], color=COLOUR["grid"], linewidth=3)
            axes.annotate(label(key), (0, row - 0.3), xycoords=("axes fraction", "data"), fontsize=8, va="bottom")
        for state, marker in marks.items():
            colour = COLOUR["vision" if state == LAST else "muted"]
            found = [(value, row) for row, key in enumerate(keys) if (value := run.value(state, key)) is not None]
            if not found and run.unfinished:
                continue  # or the key would name what there is not
            axes.plot(
                [value for value, _ in found], [row for _, row in found], marker, label=state, color=colour,
                markerfacecolor="none" if state == "dense" else colour, markersize=9 if state == "dense" else 6,
            )  # fmt: skip
        axes.set_ylim(len(keys) - 0.4, -1.1)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.margins(x=0.04)
        _legend(axes, 3)

    return picture(identifier, "metrics of each state", f"{'; '.join(parts)}.", 0.8 + 0.36 * len(keys), draw)


def _lines(
    identifier: str, title: str, unit: str, curves: dict[str, list[Point]], target: float | None = None
) -> Element | None:
    """Lines over the optimizer steps; ``None`` where nothing was logged."""
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return None
    parts = [f"{name} from {points[0][1]:.4g} to {points[-1][1]:.4g}" for name, points in curves.items()]
    goal = [] if target is None else [f"target {target:.4g}"]
    last = max(points[-1][0] for points in curves.values())

    def draw(axes: Axes) -> None:
        for number, (name, points) in enumerate(curves.items()):
            axes.plot(
                *zip(*points, strict=True), "-" if name in COLOUR or not number else "--",
                color=COLOUR.get(name, COLOUR["ink"]), linewidth=1.8, marker="o" if len(points) < 30 else "",
                markersize=3.5, label=name,
            )  # fmt: skip
        if target is not None:
            axes.axhline(
                target, color=COLOUR["muted"], linewidth=1, linestyle=(0, (1, 2)), label=f"target {target:g} %"
            )
        if unit.endswith("%"):
            axes.set_ylim(bottom=0)
        if len(curves) > 1 or goal:
            _legend(axes, 4)
        _steps(axes, unit)

    text = f"{unit} over {last:,.0f} optimizer steps: {', '.join([*parts, *goal])}."
    return picture(identifier, title, text, 2.5, draw)


def _bars(identifier: str, title: str, points: list[Point]) -> Element | None:
    if not points:
        return None
    total = sum(value for _, value in points)

    def draw(axes: Axes) -> None:
        steps = [step for step, _ in points]
        gap = min((after - before for before, after in pairwise(steps)), default=1.0)
        axes.bar(steps, [value for _, value in points], 0.8 * gap, color=COLOUR["muted"])
        axes.set_ylim(bottom=0, top=None if total else 1)
        _steps(axes, "units")

    text = f"{len(points)} updates gave {total:,.0f} units back that an earlier one had chosen to go."
    return picture(identifier, title, text, 2.5, draw)


def _points(run: Run, key: str, times: float = 1.0) -> list[Point]:
    """Step and value of the updates that have both as numbers, ascending."""
    found = [(row["step"], times * row[key]) for row in run.history if "step" in row and key in row]
    return sorted(point for point in found if all(map(math.isfinite, point)))


def _steps(axes: Axes, unit: str) -> None:
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_ylabel(unit)
    axes.grid(axis="y")


def _legend(axes: Axes, columns: int) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=columns, columnspacing=1.0, handlelength=1.6,
        handletextpad=0.4, borderpad=0,
    )  # fmt: skip


def _height(rows: int) -> float:
    """Inches for a chart of horizontal bars."""
    return 0.6 + 0.2 * rows
