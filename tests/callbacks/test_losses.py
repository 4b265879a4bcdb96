"""The mean loss between two updates, by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import distributed

from upop.callbacks.losses import MeanLoss

CPU = torch.device("cpu")
ALONE: Any = SimpleNamespace(world_size=1)


def test_the_mean_is_of_undivided_losses_since_the_last_time() -> None:
    losses = MeanLoss()
    for value in (1.0, 2.0):
        losses.add({"loss": torch.tensor(value)}, batches=4)
    losses.add(None, batches=4)
    assert losses.take(ALONE, CPU) == {"loss": 6.0}
    assert losses.take(ALONE, CPU) == {}


def test_losses_that_are_not_finite_do_not_count() -> None:
    losses = MeanLoss()
    for value in (1.0, math.nan, math.inf, 3.0):
        losses.add({"loss": torch.tensor(value)}, batches=1)
    assert losses.take(ALONE, CPU) == {"loss": 2.0}
    losses.add({"loss": torch.tensor(math.nan)}, batches=1)
    assert losses.take(ALONE, CPU) == {}


def test_every_rank_gets_the_mean_over_all() -> None:
    def both(own: torch.Tensor, reduce_op: str) -> torch.Tensor:
        assert reduce_op == "sum"
        return own + torch.tensor([9.0, 2.0])  # the other rank has had two losses, of 9 together

    ranks: Any = SimpleNamespace(world_size=2, strategy=SimpleNamespace(reduce=both))
    losses = MeanLoss()
    losses.add({"loss": torch.tensor(3.0)}, batches=1)
    assert losses.take(ranks, CPU) == {"loss": 4.0}
    assert losses.take(ranks, CPU) == {"loss": 4.5}, "one that has none asks, too"


def test_losses_come_back_as_they_were() -> None:
    losses, again = MeanLoss(), MeanLoss()
    for value in (0.1, 0.2, 0.7):
        losses.add({"loss": torch.tensor(value)}, batches=3)
    again.restore(losses.state())
    assert again.take(ALONE, CPU) == losses.take(ALONE, CPU)


def test_every_rank_takes_its_own_losses_back_and_the_first_those_of_another_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def restored(rank: int, world: int) -> list[torch.Tensor]:
        monkeypatch.setattr(distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(distributed, "get_rank", lambda: rank)
        monkeypatch.setattr(distributed, "get_world_size", lambda: world)
        losses = MeanLoss()
        losses.restore([[1.0, 2.0], [3.0]])
        return losses.losses

    assert [restored(rank, 2) for rank in range(2)] == [[1.0, 2.0], [3.0]]
    assert [restored(rank, 3) for rank in range(3)] == [[1.0, 2.0, 3.0], [], []]
    assert restored(0, 1) == [1.0, 2.0, 3.0]
