"""Several runs side by side: quality against size."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from textwrap import fill
from typing import Any
from xml.etree.ElementTree import Element

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter

from upop.report.facts import LAST, Run, label, shown
from upop.report.svg import SERIES, picture
from upop.report.tables import human

MARKERS = "osD^v"  # one fewer than colours, so that it takes many curves for a pair to come back
WIDE = 8  # sizes that differ by more than this are drawn on a logarithmic axis


def lines(runs: Sequence[Run], metric: str) -> dict[str, list[tuple[int, Run]]]:
    """Runs that make one curve, with their numbers on the page, from 1: the same task, data, dense model and policy.

    Runs without ``metric``, and those that are not finished, are left out.
    """
    found: dict[str, list[tuple[int, Run]]] = {}
    for number, run in enumerate(runs, start=1):
        if run.unfinished is None and run.value(LAST, metric) is not None:
            size = human(run.states["dense"]["params"])
            name = f"{run.task}, {size} dense, {run.facts.get('policy')}, {run.facts.get('allocation')}"
            found.setdefault(name, []).append((number, run))
    return found


def curve(identifier: str, runs: Sequence[Run], metric: str, size: str = "params") -> Element:
    """A metric of the retrained models against their size, each curve beginning at its dense model.

    Runs of one curve that were given the same target (other seeds, say) share the line's point, which is their mean.

    Args:
        identifier: Unique on the page.
        runs: All runs of the page; those without the metric and those not finished are left out.
        metric: Its name in summary.json.
        size: ``params`` or ``flops``.
    """
    found = lines(runs, metric)
    drawn = [run for members in found.values() for _, run in members]
    parts = [
        f"{run.name}: {shown(metric, run.value(LAST, metric))} at {human(run.states[LAST][size])}, "
        f"dense {shown(metric, run.value('dense', metric))} at {human(run.states['dense'][size])}"
        for run in drawn
    ]

    def draw(axes: Axes) -> None:
        for place, (name, members) in enumerate(found.items()):
            colour, marker = SERIES[place % len(SERIES)], MARKERS[place % len(MARKERS)]
            x, y = zip(*_line(members, metric, size), strict=True)
            axes.plot(x, y, color=colour, linewidth=1.6, label=fill(name, 38))
            dots: dict[str, Any] = {"s": 40, "marker": marker, "edgecolors": colour}
            axes.scatter(*_ends(members, metric, size, "dense"), facecolors="none", **dots)
            axes.scatter(*_ends(members, metric, size, LAST), facecolors=colour, zorder=3, **dots)
            for number, run in members:
                at = (run.states[LAST][size], run.states[LAST][metric])
                axes.annotate(str(number), at, (0, 6), textcoords="offset points", fontsize=8, ha="center")
        _scale(axes, [run.states[state][size] for run in drawn for state in ("dense", LAST)])
        axes.set_xlabel(label(size))
        axes.set_ylabel(label(metric))
        axes.grid()
        axes.margins(y=0.12)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), borderpad=0, handlelength=1.6)

    title = f"{label(metric)} against {label(size)}"
    text = f"Hollow: dense; filled: retrained, by number of the run. {'; '.join(parts)}."
    return picture(identifier, title, text, 2.6 + 0.32 * len(found), draw)


def _scale(axes: Axes, sizes: Sequence[float]) -> None:
    """Sizes from 0, or on a logarithmic axis where they are far apart."""
    if max(sizes) > WIDE * min(sizes):
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.1)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlim(0, 1.1 * max(sizes))
    axes.xaxis.set_major_formatter(EngFormatter())


def _ends(members: Sequence[tuple[int, Run]], metric: str, size: str, state: str) -> tuple[list[float], list[float]]:
    """Sizes and metrics of one state of each run."""
    points = [(run.states[state][size], value) for _, run in members if (value := run.value(state, metric)) is not None]
    return [at for at, _ in points], [value for _, value in points]


def _line(members: Sequence[tuple[int, Run]], metric: str, size: str) -> list[tuple[float, float]]:
    """The mean point of the dense models and of each target, ascending in size."""
    groups: dict[float | None, list[tuple[int, Run]]] = {}
    for member in members:
        groups.setdefault(member[1].target, []).append(member)
    ends = [_ends(group, metric, size, LAST) for group in groups.values()]
    dense = _ends(members, metric, size, "dense")
    ends += [dense] if dense[0] else []
    return sorted((mean(sizes), mean(values)) for sizes, values in ends)
