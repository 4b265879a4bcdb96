"""The mean loss between two updates, by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch

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
