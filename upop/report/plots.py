"""Pictures of a compression: what stays in each layer, and how the search got there.

Figures are made and saved without pyplot, so that no global state and no display is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from upop.files import write_atomic
from upop.report.paths import role, stack
from upop.report.tables import CURRENCY
from upop.structure import KINDS, MODALITIES, Plan, Site

# Okabe and Ito's palette, which colour-blind readers can tell apart: https://jfly.uni-koeln.de/color/
COLOURS = {"head": "#E69F00", "head_dim": "#0072B2", "neuron": "#009E73"}
LINES = {"": "#000000", "vision": "#0072B2", "text": "#D55E00", "fusion": "#009E73"}
NAMES = {"head": "heads", "head_dim": "head-dim positions", "neuron": "neurons"}
GREY = "#5F5F5F"
DPI = 150
WIDEST = 14.5  # inches: towers that are wider together are stacked
HEADROOM = 122  # percent: room above a whole bar for its number

Bars = dict[int, tuple[int, int]]
"""Units kept and units of the dense model, by depth."""


def allocation(path: str | Path, sites: Sequence[Site], plan: Plan) -> None:
    """Write the picture of :func:`allocation_figure` as PNG, atomically.

    Raises:
        ValueError: As :func:`allocation_figure`.
    """
    _save(path, allocation_figure(sites, plan))


def allocation_figure(sites: Sequence[Site], plan: Plan) -> Figure:
    """What is kept in each layer of each tower: a panel a modality, a group of bars a layer, a bar a kind.

    A bar is the percentage of units kept, in an outline of 100 %, with the number of units above it. Several sites of
    one kind in one layer (self- and cross-attention) are bars of their own. Towers too wide to stand side by side are
    stacked.

    Args:
        sites: All sites of the model.
        plan: Units to keep. A site that it does not name is whole.

    Raises:
        ValueError: If there is no site, or ``plan`` does not fit ``sites``.
    """
    if not sites:
        raise ValueError("there is no site to draw; give the sites that the plan was made for")
    plan.check(sites)
    towers = [name for name in MODALITIES if any(site.modality == name for site in sites)]
    series = {name: _series([site for site in sites if site.modality == name], plan.kept()) for name in towers}
    widths = [_inches(series[name]) for name in towers]
    beside = sum(widths) <= WIDEST
    size = (sum(widths) + 0.4, 4.6) if beside else (max(widths) + 0.4, 1.4 + 3.2 * len(towers))
    size = (max(size[0], 6.0), size[1])
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    figure = Figure(figsize=size, dpi=DPI, facecolor="white", layout=layout)
    if beside:
        panels = figure.subplots(1, len(towers), sharey=True, squeeze=False, width_ratios=widths)[0]
    else:
        panels = figure.subplots(len(towers), 1, squeeze=False)[:, 0]
    figure.suptitle("\n".join(wrap(f"kept: {_facts(sites, plan.kept())}", int(11 * size[0]))), fontsize=11)
    for name, axes, width in zip(towers, panels, widths, strict=True):
        share = width * (size[0] - 0.4) / sum(widths) if beside else size[0] - 0.4
        _tower(axes, series[name], 72 * (share - 0.7))
        facts = _facts([site for site in sites if site.modality == name], plan.kept(), short=True)
        axes.set_title(f"{name}\n{facts}", fontsize=9)
        if axes is panels[0] or not beside:
            axes.set_ylabel("units kept, %")
    handles: dict[str, Artist] = {}
    for axes in panels:
        bars = {str(bars.get_label()): bars for bars in axes.containers if isinstance(bars, BarContainer)}
        handles |= {label: bars.patches[0] for label, bars in bars.items() if label != "_whole"}
    widest = max(1.9, 0.6 + 0.075 * max(map(len, handles)))  # inches of an entry at this size of type
    columns = max(1, min(len(handles), int(size[0] / widest)))
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=columns, frameon=False, fontsize=9
    )
    return figure


def search_curve(path: str | Path, rows: Sequence[Mapping[str, float]], target: float | None = None) -> None:
    """Write the picture of :func:`search_figure` as PNG, atomically.

    Raises:
        ValueError: As :func:`search_figure`.
    """
    _save(path, search_figure(rows, target))


def search_figure(rows: Sequence[Mapping[str, float]], target: float | None = None) -> Figure:
    """The search over time: above, the fraction removed; below, the task loss, where it is given.

    Args:
        rows: What was logged: ``step`` (optimizer steps) with any of ``removed/params``, ``removed/flops``,
            ``removed/latency``, the same with ``/vision``, ``/text`` or ``/fusion`` behind (fractions removed, 0 to 1),
            and ``loss``. A row need not have every key; NaN and what is split further (by kind) are left out.
        target: Fraction to be removed in the end, drawn as a line.

    Raises:
        ValueError: If no row has both ``step`` and a key that starts with ``removed/``.
    """
    found = {key for row in rows for key in row if key.startswith("removed/") and key.count("/") <= 2}
    keys = sorted(found, key=_line_order)
    curves = {key: points for key in keys if len(points := _points(rows, key))}
    if not curves:
        keys = sorted({key for row in rows for key in row})
        raise ValueError(f"no row has 'step' and a 'removed/...' to draw; the {len(rows)} rows have the keys {keys!r}")
    loss = _points(rows, "loss")
    ratios = [3, 2] if len(loss) else [1]
    figure = Figure(figsize=(8, 6 if len(loss) else 4), dpi=DPI, facecolor="white", layout="constrained")
    panels = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    _removed(panels[0], curves, target)
    if len(loss):
        _loss(panels[1], loss)
    panels[-1].set_xlabel("optimizer step")
    last = ", ".join(
        f"{100 * points[-1, 1]:.1f} % of {_word(key)}" for key, points in curves.items() if key.count("/") == 1
    )
    steps = max(points[-1, 0] for points in curves.values())
    figure.suptitle(f"search: {last or 'units'} removed at step {steps:,.0f}", fontsize=11)
    return figure


def _save(path: str | Path, figure: Figure) -> None:
    """Write a figure as PNG, atomically."""
    write_atomic(path, lambda temporary: FigureCanvasAgg(figure).print_png(temporary))


def _series(sites: Sequence[Site], kept: Mapping[str, int]) -> dict[tuple[str, str], Bars]:
    """Bars of one tower, by kind and role: the role is empty unless a layer has several sites of that kind."""
    found: dict[tuple[str, str], Bars] = {}
    for kind in KINDS:
        same = [site for site in sites if site.kind == kind]
        several = len({site.depth for site in same}) < len(same)
        stacks = {stack(site.block) for site in same}
        for site in same:
            place = f"{stack(site.block)}: {role(site.block)}" if len(stacks) > 1 else role(site.block)
            bars = found.setdefault((kind, place if several else ""), {})
            stay, units = bars.get(site.depth, (0, 0))
            bars[site.depth] = (stay + kept.get(site.name, site.units), units + site.units)
    return found


def _layers(series: Mapping[tuple[str, str], Bars]) -> list[int]:
    """Depths that have a bar."""
    return sorted({depth for bars in series.values() for depth in bars})


def _inches(series: Mapping[tuple[str, str], Bars]) -> float:
    """Width of a tower's panel in which every bar can carry its number."""
    return min(max(0.7 + len(_layers(series)) * (0.14 * len(series) + 0.06), 3.0), 13.0)


def _tower(axes: Axes, series: Mapping[tuple[str, str], Bars], points: float) -> None:
    """Draw one tower into a panel that is ``points`` wide."""
    layers = _layers(series)
    place = {depth: number for number, depth in enumerate(layers)}
    width = 0.84 / len(series)
    room = points / max(len(layers), 1) * width  # points a bar
    for number, ((kind, what), bars) in enumerate(series.items()):
        shade = sum(1 for other in list(series)[:number] if other[0] == kind)
        x = np.array([place[depth] for depth in bars]) + (number - (len(series) - 1) / 2) * width
        height = [100 * stay / units for stay, units in bars.values()]
        label = f"{NAMES[kind]} ({what})" if what else NAMES[kind]
        axes.bar(x, 100, width * 0.9, facecolor="#F2F2F2", edgecolor="#B8B8B8", linewidth=0.6, label="_whole")
        drawn = axes.bar(x, height, width * 0.9, color=_lighter(COLOURS[kind], 0.45 * shade), label=label)
        if room >= 6:
            texts = [f"{stay}" for stay, _ in bars.values()]
            size = 7 if room >= 8 else 5.5
            flat = max(map(len, texts)) * 0.62 * size + 1.5 <= room
            axes.bar_label(drawn, texts, padding=2, fontsize=size, rotation=0 if flat else 90, color="#222222")
    axes.set_xticks(range(len(layers)), [str(depth) for depth in layers], fontsize=8)
    axes.set_xlim(-0.6, len(layers) - 0.4)
    axes.set_ylim(0, HEADROOM)
    axes.set_yticks(range(0, 101, 25))
    axes.set_xlabel("layer")
    _plain(axes)


def _removed(axes: Axes, curves: Mapping[str, np.ndarray], target: float | None) -> None:
    """Draw the fractions removed, in percent: colour for the tower, dashes for the currency, thick for all towers."""
    dashes = {"params": "-", "flops": "--", "latency": ":"}
    for key, points in curves.items():
        _, currency, tower = (*key.split("/", 2), "")[:3]
        axes.plot(
            points[:, 0], 100 * points[:, 1], dashes.get(currency, "-."), color=LINES.get(tower, GREY),
            linewidth=1.4 if tower else 2.2, label=f"{_word(currency)}, {tower or 'all towers'}",
        )  # fmt: skip
    if target is not None:
        axes.axhline(100 * target, color=GREY, linewidth=1, linestyle=(0, (1, 2)), label=f"target, {100 * target:g} %")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("removed, %")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    _plain(axes)


def _loss(axes: Axes, points: np.ndarray) -> None:
    """Draw the loss: every value in grey and, where there are many, their running mean."""
    many = len(points) >= 40
    axes.plot(
        points[:, 0], points[:, 1], color="#BBBBBB" if many else "#000000", linewidth=0.8 if many else 1.6, label="each"
    )
    if many:
        window = max(len(points) // 20, 5)
        mean = np.convolve(points[:, 1], np.ones(window) / window, mode="valid")
        middle = points[(window - 1) // 2 :][: len(mean), 0]
        axes.plot(middle, mean, color="#000000", linewidth=1.8, label=f"mean of {window}")
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        low, high = np.percentile(points[:, 1], [0.5, 99.5])
        margin = 0.08 * (high - low) or 1.0
        axes.set_ylim(min(low, mean.min()) - margin, max(high, mean.max()) + margin)
    axes.set_ylabel("task loss")
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    _plain(axes)


def _points(rows: Sequence[Mapping[str, float]], key: str) -> np.ndarray:
    """Step and value of the rows that have both, ``(N, 2)``, ascending in the step."""
    found = [(float(row["step"]), float(row[key])) for row in rows if "step" in row and key in row]
    found = sorted(point for point in found if all(map(math.isfinite, point)))
    return np.array(found, dtype=float).reshape(-1, 2)


def _line_order(key: str) -> tuple[int, int, str]:
    """Parameters before FLOPs before others, the whole before its towers."""
    _, currency, tower = (*key.split("/", 2), "")[:3]
    order = list(CURRENCY)
    towers = ["", *MODALITIES]
    return (
        order.index(currency) if currency in order else len(order),
        towers.index(tower) if tower in towers else len(towers),
        key,
    )


def _word(key: str) -> str:
    """A currency as a reader says it."""
    currency = key.removeprefix("removed/")
    return CURRENCY.get(currency, currency)


def _facts(sites: Sequence[Site], kept: Mapping[str, int], short: bool = False) -> str:
    """How many units of each kind stay, or just their percentage."""
    parts = []
    for kind in KINDS:
        same = [site for site in sites if site.kind == kind]
        if same:
            stay, units = sum(kept.get(site.name, site.units) for site in same), sum(site.units for site in same)
            share = f"{100 * stay / units:.0f} %"
            parts.append(f"{kind} {share}" if short else f"{stay:,} of {units:,} {NAMES[kind]} ({share})")
    return ", ".join(part.replace(" ", "\u00a0") for part in parts)  # lines break between parts only


def _lighter(colour: str, by: float) -> tuple[float, float, float]:
    """``colour`` mixed with white, ``by`` = 0 (as it is) to 1 (white), at most 0.8."""
    red, green, blue = (part + (1 - part) * min(by, 0.8) for part in to_rgb(colour))
    return red, green, blue


def _plain(axes: Axes) -> None:
    """No frame above and at the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#888888")
    axes.tick_params(colors="#333333", length=3)
