"""Speed and memory of models side by side: the numbers and the tables of ``upop bench``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Column, Table

from upop import __version__
from upop.report.tables import NONE, human

BENCHMARK_FORMAT = 1
GENERATING = ("BlipForConditionalGeneration", "BlipForQuestionAnswering")
"""Architectures that write text: their forward pass reads one that is given."""
FEW_ROUNDS = 10


@dataclass(frozen=True)
class Model:
    """What a model is, whatever it runs on.

    Attributes:
        name: What it is called here.
        source: Directory or hub name; ``None`` for a model that was made in memory.
        architecture: Its class.
        params: Parameters, tied ones once.
        flops: FLOPs per sample.
        weight_bytes: Bytes of parameters and buffers in the dtype that was timed.
        file_bytes: Bytes of the weight files; ``None`` where they are not at hand.
    """

    name: str
    source: str | None
    architecture: str
    params: int
    flops: int
    weight_bytes: int
    file_bytes: int | None


@dataclass(frozen=True)
class Timing:
    """What one model showed with one batch size.

    Attributes:
        model: Its name.
        batch_size: Samples per forward pass.
        latency_ms: Median milliseconds of a forward pass.
        latency_p90_ms: The same, 90th percentile.
        throughput: Samples per second at the median.
        rounds: Forward passes that were timed.
        peak_bytes: Weights, inputs and what a forward pass allocates at most at one time, as torch's allocator counts.
        first_pass_s: Seconds of the first pass, which compiles if anything does; not part of the latency.
        rounds_faster: Rounds in which it was faster than the baseline; ``None`` without one, and for the baseline.
    """

    model: str
    batch_size: int
    latency_ms: float
    latency_p90_ms: float
    throughput: float
    rounds: int
    peak_bytes: int
    first_pass_s: float
    rounds_faster: int | None = None


@dataclass(frozen=True)
class Benchmark:
    """Models that were timed in turns, in one process.

    Attributes:
        device: Name of the processor.
        threads: Threads of torch; ``None`` on a GPU.
        dtype: ``fp32``, ``bf16`` or ``fp16``.
        compiled: Whether torch.compile was used.
        seconds: Time that was asked for, per batch size.
        inputs: Shape of one sample of each input.
        libraries: Versions by name.
        models: In the order of their turns' first round, the baseline first.
        timings: By batch size, and in it in the order of ``models``.
        versus: Name of the baseline; ``None`` if there is none.
    """

    device: str
    threads: int | None
    dtype: str
    compiled: bool
    seconds: float
    inputs: Mapping[str, Sequence[int]]
    libraries: Mapping[str, str]
    models: Sequence[Model]
    timings: Sequence[Timing]
    versus: str | None = None

    def groups(self) -> dict[int, list[Timing]]:
        """Timings by batch size."""
        sizes = dict.fromkeys(timing.batch_size for timing in self.timings)
        return {size: [timing for timing in self.timings if timing.batch_size == size] for size in sizes}

    def flops_ratio(self, name: str) -> float | None:
        """FLOPs of the baseline over those of a model; ``None`` without a baseline, and for the baseline."""
        if self.versus in (None, name):
            return None
        flops = {model.name: model.flops for model in self.models}
        return flops[str(self.versus)] / flops[name]

    def speed_up(self, timing: Timing) -> float | None:
        """Median of the baseline over that of a model, same batch size; ``None`` as of :meth:`flops_ratio`."""
        if self.versus in (None, timing.model):
            return None
        latency = {one.model: one.latency_ms for one in self.timings if one.batch_size == timing.batch_size}
        return latency[str(self.versus)] / timing.latency_ms

    def realised(self, timing: Timing) -> float | None:
        """Speed-up over ratio of the FLOPs: 1 where what was cut is gone from the clock too."""
        gain, ratio = self.speed_up(timing), self.flops_ratio(timing.model)
        return gain / ratio if gain and ratio else None

    def conditions(self) -> str:
        """Device, threads, dtype and whether compiled, in one line."""
        threads = [f"{self.threads} thread{'s' * (self.threads != 1)}"] if self.threads is not None else []
        return ", ".join([self.device, *threads, self.dtype, *(["torch.compile"] if self.compiled else [])])

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON takes it, with the ratios worked out."""
        timings = [
            asdict(timing)
            | {
                "speed_up": self.speed_up(timing),
                "flops_ratio": self.flops_ratio(timing.model),
                "realised": self.realised(timing),
            }
            for timing in self.timings
        ]
        return {"format": BENCHMARK_FORMAT, "upop": __version__} | asdict(self) | {"timings": timings}


def models_table(benchmark: Benchmark) -> Table:
    """What the models are: sizes, one row a model."""
    table = _table("parameters", "FLOPs\nper sample", "fewer\nFLOPs", "weights\nin memory", "weights\non disk")
    for model in benchmark.models:
        table.add_row(
            model.name,
            human(model.params),
            human(model.flops),
            _times(benchmark.flops_ratio(model.name)),
            f"{human(model.weight_bytes)}B",
            NONE if model.file_bytes is None else f"{human(model.file_bytes)}B",
        )
    return table


def timings_table(benchmark: Benchmark) -> Table:
    """What they did: a section a batch size, one row a model."""
    compared = ["speed-up", "of FLOPs\nratio"] if benchmark.versus else []
    table = _table("p50,\nms", "p90,\nms", "samples\nper s", "peak\nmemory", *compared)
    for size, timings in benchmark.groups().items():
        table.add_section()
        table.add_row(f"batch {size:,}", style="bold")
        for timing in timings:
            table.add_row(*_cells(benchmark, timing))
    return table


def _cells(benchmark: Benchmark, timing: Timing) -> list[str]:
    cells = [
        timing.model,
        short(timing.latency_ms),
        short(timing.latency_p90_ms),
        short(timing.throughput),
        f"{human(timing.peak_bytes)}B",
    ]
    if timing.model == benchmark.versus:
        return [*cells, "baseline", NONE]
    realised = benchmark.realised(timing)
    compared = [_times(benchmark.speed_up(timing)), NONE if realised is None else f"{100 * realised:.0f} %"]
    return cells + compared if benchmark.versus else cells


def notes(benchmark: Benchmark) -> list[str]:
    """What a reader of the tables has to know: how it was measured, and how far to trust it."""
    inputs = " and ".join(f"{name} {_shape(shape)}" for name, shape in benchmark.inputs.items())
    few = min(timing.rounds for timing in benchmark.timings) < FEW_ROUNDS
    generating = [model.name for model in benchmark.models if model.architecture in GENERATING]
    found = [
        f"{benchmark.conditions()}: a forward pass of random {inputs}",
        f"rounds, every model once in each: {_by_batch(benchmark, _rounds)}"
        + (f"; fewer than {FEW_ROUNDS} say little of p90, more seconds give more" if few else ""),
    ]
    if benchmark.versus:
        found.append(f"rounds faster than {benchmark.versus} (chance: half): {_by_batch(benchmark, _faster)}")
    if benchmark.compiled:
        found.append(f"first pass, which compiles and is no part of the latency: {_by_batch(benchmark, _first)}")
    found.append(
        "peak memory: weights, inputs and the most that a pass allocates at one time, as torch's allocator counts"
    )
    if generating:
        found.append(f"no text is generated: the forward pass of {', '.join(generating)} reads one that is given")
    return found


def _by_batch(benchmark: Benchmark, say: Callable[[Sequence[Timing]], str]) -> str:
    return "; ".join(f"batch {size:,}: {say(timings)}" for size, timings in benchmark.groups().items())


def _rounds(timings: Sequence[Timing]) -> str:
    spread = max(timing.latency_p90_ms / timing.latency_ms for timing in timings)
    return f"{timings[0].rounds:,}, p90 up to {spread:.2f} of p50"


def _faster(timings: Sequence[Timing]) -> str:
    compared = [timing for timing in timings if timing.rounds_faster is not None]
    return ", ".join(f"{timing.model} {timing.rounds_faster:,} of {timing.rounds:,}" for timing in compared)


def _first(timings: Sequence[Timing]) -> str:
    return ", ".join(f"{timing.model} {timing.first_pass_s:.1f} s" for timing in timings)


def _table(*headings: str) -> Table:
    """A table of models; where there is little room, their names give way, and no number."""
    table = Table(Column("model", overflow="fold"))
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _times(ratio: float | None) -> str:
    return NONE if ratio is None else f"{ratio:.2f}x"


def _shape(shape: Sequence[int]) -> str:
    """``(3, 224, 224)`` as a reader says it.

    >>> _shape((3, 224, 224)), _shape((77,))
    ('3 x 224 x 224', '77')
    """
    return " x ".join(map(str, shape))


def short(number: float) -> str:
    """Three digits or more, and never more than two behind the point.

    >>> short(0.1234), short(12.345), short(123.45), short(12345.6)
    ('0.12', '12.3', '123', '12,346')
    """
    return f"{number:,.{2 if number < 10 else 1 if number < 100 else 0}f}"
