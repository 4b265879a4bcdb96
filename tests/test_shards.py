"""Tensors that are shared out over ranks, as their holders show them; ``tests/tasks/test_sharding`` has real ones."""

from __future__ import annotations

from enum import Enum
from typing import Any

import pytest
import torch
from torch import nn

from upop.shards import engaged, gathered, held, moving, partitioned, summoned, whole


class Status(Enum):
    AVAILABLE = 1
    NOT_AVAILABLE = 2


def shared(value: torch.Tensor, share: slice) -> Any:
    """A parameter as ZeRO stage 3 leaves it: without data, which come and go."""
    parameter: Any = nn.Parameter(torch.empty(0))
    parameter.ds_id, parameter.ds_status, parameter.ds_tensor = 0, Status.NOT_AVAILABLE, value.flatten()[share].clone()

    def all_gather(param_list: list[Any]) -> None:
        for one in param_list:
            one.data, one.ds_status = value.clone(), Status.AVAILABLE

    def partition(param_list: list[Any]) -> None:
        for one in param_list:
            one.data, one.ds_status = torch.empty(0), Status.NOT_AVAILABLE

    parameter.all_gather, parameter.partition = all_gather, partition
    return parameter


def test_a_tensor_of_its_own_is_whole_and_held_in_its_own_memory() -> None:
    parameter = nn.Parameter(torch.arange(4.0))
    assert not partitioned(parameter)
    assert not engaged(parameter)
    (piece,) = held(parameter)
    assert piece.data_ptr() == parameter.data_ptr()
    assert not piece.requires_grad
    copy = whole(parameter)
    assert torch.equal(copy, parameter)
    assert copy.data_ptr() != parameter.data_ptr()
    with summoned(parameter) as found:
        assert found.data_ptr() == parameter.data_ptr()


def test_a_weight_that_zero_has_shared_out_is_gathered_for_as_long_as_it_is_asked_for() -> None:
    value = torch.arange(6.0).view(2, 3)
    parameter = shared(value, slice(0, 3))
    assert partitioned(parameter)
    assert engaged(parameter)
    assert not gathered(parameter)
    with summoned(parameter) as found:
        assert gathered(parameter)
        assert torch.equal(found, value)
    assert not gathered(parameter)
    assert torch.equal(whole(parameter), value)
    with pytest.raises(KeyError), summoned(parameter):
        raise KeyError
    assert not gathered(parameter)
    (piece,) = held(parameter)
    assert torch.equal(piece, torch.arange(3.0))


def test_a_weight_that_zero_keeps_whole_stays_so_and_is_held_twice() -> None:
    value = torch.arange(4.0)
    parameter = shared(value, slice(2, 4))
    parameter.all_gather(param_list=[parameter])
    assert torch.equal(whole(parameter), value)
    assert gathered(parameter)
    share, full = held(parameter)
    assert torch.equal(share, torch.tensor([2.0, 3.0]))
    assert full.data_ptr() == parameter.data_ptr()


def test_a_weight_of_stage_1_or_2_is_tied_to_an_engine_and_whole() -> None:
    parameter: Any = nn.Parameter(torch.ones(2))
    parameter._hp_mapping = None
    assert engaged(parameter)
    assert not partitioned(parameter)
    assert len(held(parameter)) == 1


def test_a_target_that_is_whole_beside_a_source_that_is_not_is_shared_out_again() -> None:
    target, source = (shared(torch.arange(4.0), slice(0, 2)) for _ in range(2))
    assert len(moving(target, source)) == 1
    for parameter in (target, source):
        parameter.all_gather(param_list=[parameter])
    assert len(moving(target, source)) == 2
    source.partition(param_list=[source])
    ((to, of),) = moving(target, source)
    assert not gathered(target), "or it would be used as it was before it moved"
    assert to.data_ptr() == target.ds_tensor.data_ptr()
    assert of.data_ptr() == source.ds_tensor.data_ptr()
    source.all_gather(param_list=[source])
    assert len(moving(target, source)) == 1, "the next use of the target gathers its share"
    mean, weight = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))
    ((to, of),) = moving(mean, weight)
    assert (to.data_ptr(), of.data_ptr()) == (mean.data_ptr(), weight.data_ptr())
