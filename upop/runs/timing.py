"""How fast models are and how much memory a forward pass takes, measured side by side in one run."""

from __future__ import annotations

import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MOST_WARM_UPS = 10
STEADY = 0.9
"""A pass that takes at least this share of the time of the one before shows that the model is warm."""

Pass = Callable[[], object]
"""A forward pass that is over when it returns."""


@dataclass(frozen=True)
class Measure:
    """How the speed of dense and compressed model is measured, side by side.

    Attributes:
        batch_size: Samples per forward pass.
        seconds: Time to spend on it, about.
    """

    batch_size: int = 32
    seconds: float = 10.0


@dataclass(frozen=True)
class Speed:
    """Measured speed of one model.

    Attributes:
        latency_ms: Median milliseconds of a forward pass of the batch.
        latency_p90_ms: The same, 90th percentile; where it falls between two passes, the slower one.
        throughput: Samples per second at the median.
        batch_size: Samples per forward pass.
        rounds: Forward passes that were timed.
        device: Where.
    """

    latency_ms: float
    latency_p90_ms: float
    throughput: float
    batch_size: int
    rounds: int
    device: str

    @classmethod
    def of(cls, times: Sequence[float], batch_size: int, device: torch.device) -> Speed:
        """The speed of a model whose passes took ``times``, in seconds."""
        median = statistics.median(times)
        p90 = sorted(times)[math.ceil(0.9 * (len(times) - 1))]
        cuda = device.type == "cuda"
        name = torch.cuda.get_device_name(device) if cuda else f"cpu, {torch.get_num_threads()} threads"
        return cls(1000 * median, 1000 * p90, batch_size / median, batch_size, len(times), name)


def compare_speed(
    models: Mapping[str, nn.Module],
    inputs: Mapping[str, Tensor],
    batch_size: int = 32,
    seconds: float = 10.0,
    least_rounds: int = 3,
) -> dict[str, Speed]:
    """Time the forward pass of several models, turn by turn, so that a drift of the machine hits all alike.

    Args:
        models: Models by name, all on the device and of the dtype to time.
        inputs: One sample of any device, which gives the shapes; see :func:`random_batch`.
        batch_size: Samples per forward pass.
        seconds: Time to spend, about; every model gets at least ``least_rounds`` passes once it is warm.
        least_rounds: Fewest timed passes per model.

    Returns:
        Speed by model name.
    """
    first = next(next(iter(models.values())).parameters())
    words = min(map(vocabulary, models.values()))
    batch = random_batch(inputs, batch_size, first.device, first.dtype, words)
    passes = {name: forward(model.eval(), batch) for name, model in models.items()}
    times = take_turns(passes, seconds, least_rounds)
    return {name: Speed.of(found, batch_size, first.device) for name, found in times.items()}


def random_batch(
    sample: Mapping[str, Tensor],
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    words: int = 1,
) -> dict[str, Tensor]:
    """A batch of random images and random tokens, the same every time; without a mask, so every token is attended to.

    Args:
        sample: One sample of any device, which gives the shapes.
        batch_size: Samples.
        device: Where the batch is to be.
        dtype: Of the images.
        words: Tokens are drawn from the first this many of the vocabulary.
    """
    generator = torch.Generator().manual_seed(0)
    batch = {}
    for name, value in sample.items():
        shape = (batch_size, *value.shape[1:])
        if value.dtype.is_floating_point:
            batch[name] = torch.randn(shape, generator=generator).to(device, dtype)
        else:
            batch[name] = torch.randint(words, shape, generator=generator, dtype=value.dtype).to(device)
    return batch


def vocabulary(model: nn.Module) -> int:
    """Tokens that a model knows; 1 where its configuration does not say."""
    config: Any = getattr(model, "config", None)
    return int(getattr(getattr(config, "text_config", config), "vocab_size", None) or 1)


def forward(model: Callable[..., object], batch: Mapping[str, Tensor]) -> Pass:
    """A forward pass of ``batch`` through a model, compiled or not, that is over when it returns, on a GPU too."""
    device = next(iter(batch.values())).device

    def run() -> None:
        with torch.inference_mode():
            model(**batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def take_turns(
    passes: Mapping[str, Pass],
    seconds: float,
    least_rounds: int = 3,
    clock: Callable[[], float] = time.perf_counter,
    tell: Callable[[int, float], object] = lambda rounds, elapsed: None,
) -> dict[str, list[float]]:
    """Time passes in rounds; in each round every one has one turn, in an order that changes (:func:`order`).

    Each is warmed up until it is steady: until a pass is not much faster than the one before (:data:`STEADY`), at most
    :data:`MOST_WARM_UPS` times.

    Args:
        passes: What to time, by name.
        seconds: Time to spend on the rounds, about.
        least_rounds: Fewest rounds.
        clock: Gives the time in seconds.
        tell: Called after every round with the rounds and the seconds that are over.

    Returns:
        Seconds of each pass, in the order of the rounds, by name.
    """
    for run in passes.values():
        _warm_up(run, clock)
    names = list(passes)
    times: dict[str, list[float]] = {name: [] for name in names}
    start, number = clock(), 0
    while number < least_rounds or clock() - start < seconds:
        for place in order(len(names), number):
            times[names[place]].append(timed(passes[names[place]], clock))
        number += 1
        tell(number, clock() - start)
    return times


def order(count: int, number: int) -> list[int]:
    """Who comes when in a round: over ``2 * count`` rounds each follows each other one equally often.

    A model finds the caches as the one before left them, so in a fixed order, or one that only rotates, one of them
    would always have the same forerunner. These are the rows of E. J. Williams' Latin squares, balanced for residual
    effects (Australian Journal of Scientific Research A 2, 1949), first as they are and then backwards.

    >>> [order(3, number) for number in range(6)]
    [[0, 1, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0], [0, 2, 1], [1, 0, 2]]

    Args:
        count: How many take turns.
        number: Number of the round, from 0.
    """
    row = [((place + 1) // 2 if place % 2 else -(place // 2)) + number for place in range(count)]
    row = [place % count for place in row]
    return row[::-1] if number // count % 2 else row


def timed(run: Pass, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that a pass takes."""
    start = clock()
    run()
    return clock() - start


def _warm_up(run: Pass, clock: Callable[[], float]) -> None:
    before = timed(run, clock)
    for _ in range(MOST_WARM_UPS - 1):
        now = timed(run, clock)
        if now >= STEADY * before:
            return
        before = now


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes that tensors hold, those that share their memory once."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and buffers of a model, tied ones once."""
    return bytes_of(itertools.chain(model.parameters(), model.buffers()))


def extra_bytes(run: Pass, device: torch.device) -> int:
    """Most bytes that a pass holds at one time beyond what is there before it: activations and temporary tensors.

    On a GPU it is what torch's caching allocator counts (``torch.cuda.max_memory_allocated``), on the CPU what torch's
    allocator reports to its profiler. Neither sees what a library takes past torch's allocator (such as
    a CUDA context), nor memory that the allocator keeps though no tensor needs it, so it is less than what the
    operating system shows. Run the pass once before, so that what is only made the first time does not count.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler tells the user that it starts and finds no GPU
    with torch.autograd.profiler.profile(profile_memory=True) as seen:
        run()
    events = [event for event in seen.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate((event.nbytes() for event in events), initial=0))
