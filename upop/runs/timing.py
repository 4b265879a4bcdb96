"""How fast models are, measured side by side in one run."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


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
        latency_p90_ms: The same, 90th percentile.
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


@torch.inference_mode()
def compare_speed(
    models: Mapping[str, nn.Module],
    inputs: Mapping[str, Tensor],
    batch_size: int = 32,
    seconds: float = 10.0,
    least_rounds: int = 3,
) -> dict[str, Speed]:
    """Time the forward pass of several models, turn by turn, so that a drift of the machine hits all alike.

    Args:
        models: Models by name, on the device to time.
        inputs: One sample of any device; repeated to the batch size with random images and zeros for tokens.
        batch_size: Samples per forward pass.
        seconds: Time to spend, about; every model gets at least ``least_rounds`` passes after one to warm up.
        least_rounds: Fewest timed passes per model.

    Returns:
        Speed by model name.
    """
    device = next(next(iter(models.values())).parameters()).device
    batch = {name: _batch(value, batch_size, device) for name, value in inputs.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        _timed(model.eval(), batch, device)
    start = time.perf_counter()
    while len(next(iter(times.values()))) < least_rounds or time.perf_counter() - start < seconds:
        for name, model in models.items():
            times[name].append(_timed(model, batch, device))
    return {name: _speed(found, batch_size, device) for name, found in times.items()}


def _batch(sample: Tensor, batch_size: int, device: torch.device) -> Tensor:
    shape = (batch_size, *sample.shape[1:])
    if sample.dtype.is_floating_point:
        return torch.randn(shape, device=device)
    return torch.zeros(shape, dtype=sample.dtype, device=device)


def _timed(model: nn.Module, batch: Mapping[str, Tensor], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    model(**batch)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _speed(times: list[float], batch_size: int, device: torch.device) -> Speed:
    median = statistics.median(times)
    p90 = sorted(times)[math.ceil(0.9 * (len(times) - 1))]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return Speed(1000 * median, 1000 * p90, batch_size / median, batch_size, len(times), name)
