"""Speed is measured turn by turn, over a batch of the right size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from upop.runs.timing import compare_speed


class Counter(nn.Module):
    """Notes when it is called and with how much."""

    def __init__(self, calls: list[str], name: str, work: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.calls, self.name, self.work = calls, name, work
        self.shapes: set[tuple[int, ...]] = set()

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> Tensor:
        self.calls.append(self.name)
        self.shapes |= {tuple(pixel_values.shape), tuple(input_ids.shape)}
        large = torch.ones(self.work, self.work)
        return large @ large


def test_models_take_turns_and_the_larger_one_is_slower() -> None:
    calls: list[str] = []
    models = {"dense": Counter(calls, "dense", 600), "cut": Counter(calls, "cut", 30)}
    inputs = {"pixel_values": torch.zeros(1, 3, 4, 4, device="meta"), "input_ids": torch.zeros(1, 5, dtype=torch.long)}
    speed = compare_speed(models, inputs, batch_size=6, seconds=0.0, least_rounds=5)
    assert calls == ["dense", "cut"] * 6, "one pass to warm up, then five timed ones, in turns"
    assert models["cut"].shapes == {(6, 3, 4, 4), (6, 5)}
    assert speed["dense"].latency_ms > speed["cut"].latency_ms
    assert speed["dense"].throughput == pytest.approx(6 / (speed["dense"].latency_ms / 1000))
    assert speed["dense"].rounds == 5
    assert speed["dense"].latency_p90_ms >= speed["dense"].latency_ms
