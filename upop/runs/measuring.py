"""Times of the parts of a model at several sizes, and of whole models, on the device itself.

Parts that are alike are timed once, and everything is timed turn by turn, so that a drift of the machine hits all
alike. On its own a part is a little faster or slower than in the model, where other things fill the caches and, on a
GPU, kernels queue up. So two whole models take turns with the parts, the dense one and one that keeps about half of
everything, and the parts' times are scaled until they tell this difference as it was seen.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from upop.cost import Curve, LatencySettings, LatencyTable
from upop.runs.replays import Part, Replay, alike, cut_copy, parts_of, record
from upop.runs.timing import DTYPES, random_batch, take_turns, timed, vocabulary
from upop.structure import Kind, Plan, Site
from upop.surgery import shrink_

POINTS = {1: 10, 2: 5}
"""Steps that the sizes of a site are measured in, by the number of sites of its part."""
LEAST_ROUNDS = 5
"""Turns that everything gets, however short the time is."""
LEAST_SECONDS = 0.005
"""A shorter replay is repeated, or the clock and the wait for the device would be most of what is timed."""
Timer = Callable[[Sequence[Replay], float], list[float]]
"""Times replays turn by turn for about so many seconds; returns the seconds of each."""


def measure_latency(
    model: nn.Module,
    sites: Sequence[Site],
    inputs: Mapping[str, Tensor],
    settings: LatencySettings,
    device: torch.device,
    facts: Mapping[str, Any],
    timer: Timer | None = None,
) -> LatencyTable:
    """Measure a table.

    Needs memory for two copies of the model and some ten of each part on the device, and leaves the model as it is.

    Args:
        model: Dense model; its weights do not matter.
        sites: Sites of the kinds that are searched.
        inputs: One sample of any device, which gives the shapes.
        settings: What to measure.
        device: Where.
        facts: What the table is to say of itself. ``multiple_of`` are the multiples that the kept units will have, by
            kind, at which sizes are measured.
        timer: What times replays; by default :func:`fastest`.
    """
    dense = copy.deepcopy(model).to(device, DTYPES[settings.dtype]).eval()
    parts = parts_of(sites)
    groups = _groups(parts, dense, _batch(dense, inputs, 1, device))
    firsts = [parts[numbers[0]] for numbers in groups]
    batch = _batch(dense, inputs, settings.batch_size, device)
    calls = record(dense, {part.module for part in firsts}, batch)
    axes = [
        tuple(sizes_of(site, facts["multiple_of"], POINTS[len(part.sites)]) for site in part.sites) for part in firsts
    ]
    replays = [
        Replay(cut_copy(dense, part, kept), calls[part.module], device)
        for part, sizes in zip(firsts, axes, strict=True)
        for kept in itertools.product(*sizes)
    ]
    kept = _half([(parts[place], sizes) for sizes, places in zip(axes, groups, strict=True) for place in places])
    half = copy.deepcopy(dense)
    shrink_(half, sites, Plan.of({name: range(count) for name, count in kept.items()}, sites))
    models = [Replay(one, [((), batch)], device) for one in (dense, half)]
    *times, whole, cut = (timer or fastest)([*replays, *models], settings.seconds)
    table = LatencyTable(
        dict(facts),
        round(1e9 * whole),
        1.0,
        _curves(axes, times),
        {parts[place].block: number for number, places in enumerate(groups) for place in places},
        {part.block: tuple(site.name for site in part.sites) for part in parts},
    )
    return replace(table, scale=_scale(table, kept, 1e9 * (whole - cut)))


def _curves(axes: Sequence[tuple[tuple[int, ...], ...]], times: Sequence[float]) -> tuple[Curve, ...]:
    """The curves of parts that were timed at these sizes, one behind the other, in seconds."""
    shapes = [tuple(map(len, sizes)) for sizes in axes]
    pieces = np.split(np.rint(1e9 * np.array(times)), np.cumsum([math.prod(shape) for shape in shapes])[:-1])
    return tuple(Curve(sizes, piece.reshape(shape)) for sizes, piece, shape in zip(axes, pieces, shapes, strict=True))


def _batch(model: nn.Module, inputs: Mapping[str, Tensor], size: int, device: torch.device) -> dict[str, Tensor]:
    return random_batch(inputs, size, device, next(model.parameters()).dtype, vocabulary(model))


def _groups(parts: Sequence[Part], dense: nn.Module, sample: Mapping[str, Tensor]) -> list[list[int]]:
    """Numbers of the parts that are alike, in the order of the first of each."""
    calls = record(dense, {part.module for part in parts}, sample)
    found: dict[str, list[int]] = {}
    for number, part in enumerate(parts):
        found.setdefault(alike(dense, part, calls[part.module]), []).append(number)
    return list(found.values())


def sizes_of(site: Site, multiple_of: Mapping[Kind, int], points: int) -> tuple[int, ...]:
    """Units kept that a site is timed with: one, all, and some between.

    With a multiple, these are multiples. Without, they are odd, as most sizes are that a free search leaves: a round
    number would be faster than those around it.

    Args:
        site: The site.
        multiple_of: Multiples that the kept units will have, by kind.
        points: Steps between one and all, about.
    """
    if site.units <= points:
        return tuple(range(1, site.units + 1))
    even = [site.units * point / points for point in range(1, points)]
    multiple = multiple_of.get(site.kind, 1)
    between = [round(size / multiple) * multiple if multiple > 1 else int(size) | 1 for size in even]
    return tuple(sorted({1, *(size for size in between if 1 < size < site.units), site.units}))


def _half(parts: Sequence[tuple[Part, tuple[tuple[int, ...], ...]]]) -> dict[str, int]:
    """Units to keep at each site, by name: of the sizes that are timed the one nearest to a half."""
    return {
        site.name: min(sizes, key=lambda size, site=site: abs(size - site.units / 2))  # type: ignore[misc]
        for part, axes in parts
        for site, sizes in zip(part.sites, axes, strict=True)
    }


def _scale(raw: LatencyTable, kept: Mapping[str, int], saved: float) -> float:
    """What the parts' times are multiplied by: they save what the model saves, and cost no more than all of it."""
    own = sum(raw.time(block, {}) - raw.time(block, kept) for block in raw.parts)
    prunable = sum(raw.time(block, {}) for block in raw.parts)
    if own <= 0 or prunable <= 0:
        return 0.0
    return min(max(saved, 0.0) / own, raw.whole / prunable)


def fastest(replays: Sequence[Replay], seconds: float) -> list[float]:
    """Time replays turn by turn; of each the fastest turn counts, which others on the machine have disturbed least.

    Args:
        replays: What to time.
        seconds: Time to spend, about.

    Returns:
        Seconds of each.
    """
    with _progress(seconds, replays[0].device) as tell:
        for replay in replays:
            replay()
            replay.times = min(max(round(LEAST_SECONDS / max(timed(replay), 1e-9)), 1), 1000)
        named = {str(number): replay for number, replay in enumerate(replays)}
        found = take_turns(named, seconds, LEAST_ROUNDS, tell=tell)
    return [min(times) / replay.times for times, replay in zip(found.values(), replays, strict=True)]


def time_models(
    models: Mapping[str, nn.Module], inputs: Mapping[str, Tensor], settings: LatencySettings, device: torch.device
) -> dict[str, float]:
    """Seconds of a forward pass of whole models, by name, timed as a table is; they move to its device and dtype.

    Args:
        models: Models that take the same inputs.
        inputs: One sample.
        settings: As the table was measured with.
        device: Where.
    """
    placed = [model.to(device, DTYPES[settings.dtype]).eval() for model in models.values()]
    batch = _batch(placed[0], inputs, settings.batch_size, device)
    replays = [Replay(model, [((), batch)], device) for model in placed]
    return dict(zip(models, fastest(replays, settings.seconds / 2), strict=True))


@contextmanager
def _progress(seconds: float, device: torch.device) -> Iterator[Callable[[int, float], None]]:
    """A bar that says what is done and for how long, and goes when it is over; without a terminal there is none."""
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        task = display.add_task(f"latency on {device.type}: warming up", total=max(seconds, 1e-9))

        def tell(rounds: int, elapsed: float) -> None:
            display.update(task, description=f"latency on {device.type}: {rounds} rounds", completed=elapsed)

        yield tell
