"""``upop bench``: how fast models are and how much memory they take, side by side in one process."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from upop.cost import measure
from upop.files import write_json
from upop.report.bench import Benchmark, Timing, models_table, notes, timings_table
from upop.report.bench_plot import bench_picture, check_picture
from upop.report.tables import console
from upop.runs.bench_conditions import Conditions, device_name, explained
from upop.runs.bench_models import check_sources, common_inputs, facts, labels, load_models
from upop.runs.timing import (
    DTYPES,
    Pass,
    Speed,
    bytes_of,
    extra_bytes,
    forward,
    random_batch,
    take_turns,
    timed,
    vocabulary,
    weight_bytes,
)

LEAST_ROUNDS = 5
PICTURE = "bench.png"
LIBRARIES = ("torch", "transformers", "timm")
REFRESH = 0.25
"""Seconds between two pictures of the progress bar, which are drawn between rounds and never within one."""


def run_bench(
    directories: Sequence[str | Path],
    versus: str | Path | None = None,
    conditions: Conditions | None = None,
    to: str | Path = PICTURE,
    json: str | Path | None = None,
) -> Benchmark:
    """Time models (:func:`bench`), print the tables, and write the picture and, if wanted, the numbers.

    Args:
        directories: Model directories.
        versus: The baseline.
        conditions: How.
        to: Picture to write, PNG or SVG.
        json: File for all numbers; by default none.

    Raises:
        IsADirectoryError: If a file to write is a directory.
        ValueError: If the picture's name says no format, or as :func:`bench`.
        FileNotFoundError: As :func:`bench`.
    """
    check_picture(to)
    for file in (to, json):
        if file is not None and Path(file).is_dir():
            raise IsADirectoryError(f"{str(file)!r} is a directory; give the name of a file")
    found = bench(directories, versus, conditions)
    show(found)
    bench_picture(to, found)
    written = {"picture": to} if json is None else {"picture": to, "numbers": json}
    if json is not None:
        write_json(json, found.to_dict())
    for what, file in written.items():
        console().print(f"{what}: {file}", highlight=False, markup=False, soft_wrap=True)
    return found


def show(benchmark: Benchmark) -> None:
    """Print the tables, and below them what a reader has to know."""
    out = console()
    out.print(models_table(benchmark), timings_table(benchmark), sep="\n")
    for line in notes(benchmark):
        out.print(line, highlight=False, markup=False)


def bench(
    directories: Sequence[str | Path],
    versus: str | Path | None = None,
    conditions: Conditions | None = None,
) -> Benchmark:
    """Load models and :func:`compare` them.

    Args:
        directories: Model directories, dense or compressed.
        versus: The baseline, which the others are compared with: a directory, a hub name or ``timm/NAME``. Without
            one, the models stand side by side and no ratio is given, even where a directory says what it was cut from.
        conditions: Device, dtype, batch sizes and time; by default those of :class:`Conditions`.

    Raises:
        FileNotFoundError: If a directory is missing or holds no model; before anything is loaded, or a hub is asked.
        ValueError: If no directory is given, or one twice, or as :func:`compare`.
    """
    conditions = conditions or Conditions()
    conditions.place()
    sources = [*([str(versus)] if versus is not None else []), *map(str, directories)]
    check_sources(sources, len(directories))
    names = labels(sources)
    models = load_models(names, sources)
    return compare(models, conditions, names[0] if versus is not None else None, dict(zip(names, sources, strict=True)))


def compare(
    models: Mapping[str, nn.Module],
    conditions: Conditions,
    versus: str | None = None,
    sources: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Benchmark:
    """Time the forward passes of models turn by turn, and measure the memory that they take.

    All models are on the device at the same time and see the same batch of random images and tokens; texts are as long
    as the models have positions for.

    Args:
        models: Models in fp32 by name; they are moved to the device and the dtype.
        conditions: Device, dtype, batch sizes and time.
        versus: Name of the model that the others are compared with, if one is.
        sources: Where models were loaded from, by name.
        clock: Gives the time in seconds.

    Raises:
        ValueError: If the models do not take the same inputs; if the device is not there, is out of memory, or cannot
            compute in this dtype; or if a model cannot be compiled.
    """
    device = conditions.place()
    sample = common_inputs(models)
    known = []
    for name, model in models.items():
        flops = measure(model, [], sample).flops  # on a sample in fp32, so before the dtype changes
        with explained(name, conditions, "the weights"):
            model.to(device, DTYPES[conditions.dtype])
        known.append(facts(name, model, flops, (sources or {}).get(name)))
    timings: list[Timing] = []
    bar = _Bar(conditions.seconds * len(set(conditions.batch_sizes)))
    with bar.progress:
        for size in dict.fromkeys(conditions.batch_sizes):
            with _room_to_compile(conditions.compiled, len(models)):
                timings += _time(models, sample, size, conditions, versus, bar, clock)
    cuda = device.type == "cuda"
    return Benchmark(
        device=device_name(device),
        threads=None if cuda else torch.get_num_threads(),
        dtype=conditions.dtype,
        compiled=conditions.compiled,
        seconds=conditions.seconds,
        inputs={name: list(value.shape[1:]) for name, value in sample.items()},
        libraries={name: version(name) for name in LIBRARIES},
        models=known,
        timings=timings,
        versus=versus,
    )


def _time(
    models: Mapping[str, nn.Module],
    sample: Mapping[str, Tensor],
    size: int,
    conditions: Conditions,
    versus: str | None,
    bar: _Bar,
    clock: Callable[[], float],
) -> list[Timing]:
    """Time all models with one batch size."""
    device = conditions.place()
    passes: dict[str, Pass] = {}
    first: dict[str, float] = {}
    peak: dict[str, int] = {}
    with explained("all models", conditions, f"a batch of {size}"):
        words = min(map(vocabulary, models.values()))
        batch = random_batch(sample, size, device, DTYPES[conditions.dtype], words)
    for name, model in models.items():
        bar.say(f"{'compiling' if conditions.compiled else 'warming up'} {name}, batch {size}")
        run = forward(torch.compile(model, dynamic=False) if conditions.compiled else model, batch)
        with explained(name, conditions, f"a batch of {size}"):
            first[name] = timed(run, clock)
            peak[name] = weight_bytes(model) + bytes_of(batch.values()) + extra_bytes(run, device)
        passes[name] = run
    bar.say(f"timing {', '.join(models)} in turns, batch {size}")
    times = take_turns(passes, conditions.seconds, LEAST_ROUNDS, clock, bar.at)
    bar.finish(conditions.seconds)
    timings = []
    for name, found in times.items():
        speed = Speed.of(found, size, device)
        timings.append(
            Timing(
                model=name,
                batch_size=size,
                latency_ms=speed.latency_ms,
                latency_p90_ms=speed.latency_p90_ms,
                throughput=speed.throughput,
                rounds=speed.rounds,
                peak_bytes=peak[name],
                first_pass_s=first[name],
                rounds_faster=sum(map(operator.lt, found, times[versus])) if versus and versus != name else None,
            )
        )
    return timings


@contextmanager
def _room_to_compile(compiled: bool, models: int) -> Iterator[None]:
    """Let torch.compile start anew and keep the code of every model: its limit is for a class, which they share.

    Beyond the limit torch would run a model uncompiled and say so in a warning alone.
    """
    if not compiled:
        yield
        return
    import torch._dynamo

    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=models * torch._dynamo.config.recompile_limit):
        yield


class _Bar:
    """What is being done and the time left, where there is a terminal.

    It is drawn when it is told something and not by a thread of its own, which would cost the passes time.

    Args:
        seconds: Time to spend on the timing of all batch sizes.
    """

    def __init__(self, seconds: float) -> None:
        screen = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=screen, transient=True,
            auto_refresh=False, disable=not screen.is_terminal,
        )  # fmt: skip
        self.task = self.progress.add_task("", total=seconds)
        self.done, self.what, self.drawn = 0.0, "", -math.inf

    def say(self, what: str) -> None:
        """Tell what is done now."""
        self.what = what
        self._draw(what, self.done)

    def at(self, rounds: int, seconds: float) -> None:
        """Tell how far the timing of a batch size is."""
        if time.monotonic() - self.drawn >= REFRESH:
            self._draw(f"{self.what}, round {rounds:,}", self.done + seconds)

    def finish(self, seconds: float) -> None:
        """A batch size is through."""
        self.done += seconds

    def _draw(self, what: str, done: float) -> None:
        self.progress.update(self.task, description=what, completed=done, refresh=True)
        self.drawn = time.monotonic()
