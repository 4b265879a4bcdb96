"""Weights as DeepSpeed's engine holds them, and what it leaves in the process; ``test_sharded`` has real engines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.runs.zero_on_cpu import installed
from tests.test_shards import shared
from upop.runs.zero_engine import forwards, gather_, let_go, write_


def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, torch.Tensor]]:
    """What DeepSpeed is told of the weights that its optimizer trains."""
    import deepspeed.utils as utils

    told: list[tuple[str, torch.Tensor]] = []
    for where in ("local", "full"):
        name = f"safe_set_{where}_fp32_param"
        monkeypatch.setattr(utils, name, lambda parameter, value, where=where: told.append((where, value)))
    return told


@installed
@pytest.mark.parametrize(("rank", "expected"), [(0, [1.0, 2.0, 3.0]), (1, [4.0, 5.0, 0.0])])
def test_each_rank_writes_its_share_and_the_last_one_is_padded(
    monkeypatch: pytest.MonkeyPatch, rank: int, expected: list[float]
) -> None:
    told = written(monkeypatch)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    parameter: Any = shared(torch.zeros(6), slice(0, 3))
    parameter.ds_shape = (5,)
    with torch.no_grad():
        write_(parameter, torch.arange(1.0, 6.0))
    assert parameter.ds_tensor.tolist() == expected
    assert [(where, share.tolist()) for where, share in told] == [("local", expected)]


@installed
def test_a_weight_that_is_whole_is_written_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    told = written(monkeypatch)
    trained, frozen = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(2), requires_grad=False)
    with torch.no_grad():
        write_(trained, torch.tensor(3.0))  # a scalar, which DeepSpeed holds as a vector
        write_(frozen, torch.ones(2))
    assert trained.tolist() == [3.0]
    assert frozen.tolist() == [1.0, 1.0]
    assert [(where, value.tolist()) for where, value in told] == [("full", [3.0])]


@installed
def test_what_an_engine_leaves_behind_goes() -> None:
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator as Coordinator

    before = torch.nn.functional.linear
    forwards().append(nn.Linear(1, 1))
    cached = vars(Coordinator)["_PartitionedParameterCoordinator__params_to_release"]
    assert any(hasattr(cell.cell_contents, "cache_clear") for cell in cached.__closure__), "or nothing is cleared"
    let_go()
    assert forwards() == []
    assert torch.nn.functional.linear is before


def test_nothing_is_gathered_of_no_parameters() -> None:
    gather_([])
    value = torch.arange(4.0)
    parameters = [shared(value, slice(0, 2)), shared(value, slice(2, 4))]
    gather_(parameters)
    assert all(torch.equal(parameter, value) for parameter in parameters)
