"""A benchmark with numbers that are easily worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from upop.report.bench import Benchmark, Model, Timing

NAMES = ("dense", "cut", "smaller")


def model(name: str, flops: int, architecture: str = "CLIPModel") -> Model:
    return Model(name, f"models/{name}", architecture, flops // 2, flops, 2 * flops, 2 * flops + 100)


def timing(name: str, batch: int, latency: float, faster: int | None = None, rounds: int = 20) -> Timing:
    return Timing(name, batch, latency, 1.25 * latency, 1000 * batch / latency, rounds, 5_000_000, 1.5, faster)


def benchmark(**changes: Any) -> Benchmark:
    """FLOPs 4 : 2 : 1; times 40 : 25 : 20 ms with one sample, 400 : 200 : 125 with sixteen."""
    models = [model("dense", 4_000_000), model("cut", 2_000_000), model("smaller", 1_000_000)]
    timings = [
        timing("dense", 1, 40), timing("cut", 1, 25, 18), timing("smaller", 1, 20, 20),
        timing("dense", 16, 400, rounds=12), timing("cut", 16, 200, 12, 12), timing("smaller", 16, 125, 11, 12),
    ]  # fmt: skip
    made = Benchmark(
        "A Processor", 2, "fp32", False, 10.0, {"input_ids": [77], "pixel_values": [3, 224, 224]},
        {"torch": "2.15.0"}, models, timings, "dense",
    )  # fmt: skip
    return replace(made, **changes)
