"""The picture of ``upop bench``: latency of models side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from upop.files import write_atomic
from upop.report.bench import Benchmark, Timing, short

PICTURES = (".png", ".svg")
BASELINE, OTHER, MARK, INK = "#8C8C8C", "#0072B2", "#E69F00", "#222222"
BAR = 0.66
PROMISED = "where a bar would end if time went down as FLOPs do"
DPI = 150
WIDTH = 9.0  # inches
ROOM = 1.9  # of the longest bar, so that what stands behind it fits


def bench_picture(path: str | Path, benchmark: Benchmark) -> None:
    """Write the picture of :func:`bench_figure` as PNG or SVG, as the name says, atomically.

    Raises:
        ValueError: If the name says neither.
    """
    check_picture(path)
    figure = bench_figure(benchmark)
    write_atomic(path, lambda temporary: figure.savefig(temporary, dpi=DPI))


def check_picture(path: str | Path) -> None:
    """Refuse a picture of another format than :data:`PICTURES`.

    Raises:
        ValueError: If the name ends otherwise.
    """
    if Path(path).suffix.lower() not in PICTURES:
        raise ValueError(f"{str(path)!r} is no name of a picture; one ends with {' or '.join(PICTURES)}")


def bench_figure(benchmark: Benchmark) -> Figure:
    """Median latency as bars with the 90th percentile as whiskers: a panel a batch size, a bar a model.

    With a baseline, a mark shows where the bar of each other model would end if time went down as FLOPs do.
    """
    groups = benchmark.groups()
    height = 0.42 * len(benchmark.models) + 0.75
    figure = Figure(figsize=(WIDTH, height * len(groups) + 1.2), dpi=DPI, facecolor="white", layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
    for axes, (size, timings) in zip(panels, groups.items(), strict=True):
        _panel(axes, timings, benchmark)
        axes.set_title(f"batch {size:,}", loc="left", fontsize=10, fontweight="bold", color=INK)
    panels[-1].set_xlabel("milliseconds per forward pass: bar p50, whisker p90; shorter is better", fontsize=9)
    figure.suptitle(fill(f"latency on {benchmark.conditions()}", 90), fontsize=12, color=INK)
    handles, names = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, loc="outside lower center", frameon=False, fontsize=9)
    return figure


def _panel(axes: Axes, timings: Sequence[Timing], benchmark: Benchmark) -> None:
    """Draw one batch size."""
    median = [timing.latency_ms for timing in timings]
    slow = [timing.latency_p90_ms for timing in timings]
    places = range(len(timings))
    colours = [BASELINE if timing.model == benchmark.versus else OTHER for timing in timings]
    whiskers = [[0.0] * len(timings), [high - low for low, high in zip(median, slow, strict=True)]]
    axes.barh(places, median, BAR, color=colours)
    axes.errorbar(median, places, xerr=whiskers, fmt="none", ecolor=INK, elinewidth=1.2, capsize=4)
    promised = {
        place: share * timing.latency_ms
        for place, timing in enumerate(timings)
        if (share := benchmark.realised(timing)) is not None
    }
    if promised:
        low, high = zip(*((place - BAR / 2, place + BAR / 2) for place in promised), strict=True)
        axes.vlines(list(promised.values()), low, high, color=MARK, linewidth=2.5, label=PROMISED)
    for place, timing in enumerate(timings):
        _say(axes, place, timing, benchmark.speed_up(timing))
    axes.set_yticks(places, [fill(timing.model, 32) for timing in timings], fontsize=9)
    axes.set_ylim(len(timings) - 0.5, -0.5)  # the baseline on top
    axes.set_xlim(0, ROOM * max(slow))
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.spines["left"].set_color("#888888")
    axes.tick_params(colors=INK, length=0)


def _say(axes: Axes, place: int, timing: Timing, gain: float | None) -> None:
    """Write the numbers behind a bar, what was gained first."""
    style: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 9, "color": INK}
    numbers = f"{short(timing.latency_ms)} ms, {short(timing.throughput)} samples/s"
    end = (timing.latency_p90_ms, place)
    if gain is None:
        axes.annotate(numbers, end, (8, 0), **style)
        return
    bold = axes.annotate(f"{gain:.2f}x as fast", end, (8, 0), fontweight="bold", **style)
    axes.annotate(numbers, (1, 0.5), (8, 0), xycoords=bold, **style)
