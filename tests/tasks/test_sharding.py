"""Sharded models over two processes, held against the same models whole in one.

``python -m tests.tasks.test_sharding FILE`` forks two ranks; what they find goes into the file.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from tests import tiny
from upop.families import find_blocks, find_sites
from upop.masks import Masks, unit_norms
from upop.shards import whole
from upop.structure import KINDS, Site
from upop.tasks.base import frozen_copy, moving_average_
from upop.tasks.hidden import HiddenStates
from upop.tasks.sharding import average_replicated_, clip_, gather_, is_sharded, release_, shard_

NAMES = ("clip", "siglip", "dual_encoder", "blip_retrieval", "blip_vqa", "blip_captioning", "blip_nlvr")
RANKS, LIMIT, MOMENTUM = 2, 0.01, 0.7


def masked(name: str) -> tuple[nn.Module, list[Site], Masks]:
    model = tiny.build(name)
    sites = find_sites(model, KINDS)
    masks = Masks(model, sites)
    generator = torch.Generator().manual_seed(1)
    masks.write_({site.name: torch.rand(site.units, generator=generator) for site in sites})
    return model, sites, masks


def loss_of(model: nn.Module, rank: int) -> Tensor:
    """A scalar of the outputs and of all hidden states, so that every parameter has a gradient."""
    with HiddenStates(model) as hidden:
        found = tiny.compute(model, seed=rank)
    loss = found.square().mean() + sum(state.square().mean() for state in hidden.states.values())
    scale = getattr(model, "logit_scale", None)
    return loss if scale is None else loss * scale.exp().squeeze()  # used outside of the forward, as contrasts do


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: whole(p.grad).clone() for name, p in model.named_parameters() if p.grad is not None}


def mean(flat: Tensor) -> Tensor:
    dist.all_reduce(flat)
    return flat / RANKS


def found_by(rank: int, name: str) -> dict[str, Any]:
    """Everything that a rank finds out about a sharded model."""
    model, sites, masks = masked(name)
    average = frozen_copy(tiny.build(name, seed=2))
    mesh = init_device_mesh("cpu", (RANKS,))
    for part in (model, average):
        shard_(part, mesh)
    found: dict[str, Any] = {"names": [name for name, _ in model.named_parameters()], "blocks": find_blocks(model)}
    gather_(model)  # before any forward, and one rank alone calls the model
    found["outputs"] = tiny.outputs(model, seed=3) if rank == 0 else None
    release_(model)
    found["held"] = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in model.parameters())
    for turn in range(2):  # gradients accumulate
        loss_of(model, rank + RANKS * turn).backward()
        average_replicated_(model.parameters(), mean)
    found["gradients"] = gradients(model)
    found["of masks"] = {site: mean(value.clone()) for site, value in masks.gradients().items()}
    for algorithm in ("value", "norm"):
        clip_(model.parameters(), LIMIT, algorithm)
        found[algorithm] = gradients(model)
    found["norms"] = unit_norms(model, sites)
    moving_average_(average, model, MOMENTUM)
    found["average"] = {name: whole(value) for name, value in average.state_dict().items()}
    masks.detach()
    found["state"] = {name: whole(value) for name, value in model.state_dict().items()}
    found["sharded"] = is_sharded(model)
    return found


def expected_of(name: str) -> dict[str, Any]:
    """The same of a whole model, over the batches of all ranks."""
    model, sites, masks = masked(name)
    average = frozen_copy(tiny.build(name, seed=2))
    found: dict[str, Any] = {"names": [name for name, _ in model.named_parameters()], "blocks": find_blocks(model)}
    found["outputs"] = tiny.outputs(model, seed=3)
    for batch in range(2 * RANKS):
        (loss_of(model, batch) / RANKS).backward()
    found["gradients"] = gradients(model)
    found["of masks"] = {site: value.clone() for site, value in masks.gradients().items()}
    for algorithm, clip in (("value", nn.utils.clip_grad_value_), ("norm", nn.utils.clip_grad_norm_)):
        clip(model.parameters(), LIMIT)
        found[algorithm] = gradients(model)
    found["norms"] = unit_norms(model, sites)
    moving_average_(average, model, MOMENTUM)
    found["average"] = dict(average.state_dict())
    masks.detach()
    found["state"] = dict(model.state_dict())
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """By rank, then by model."""
    file = tmp_path_factory.mktemp("ranks") / "found"
    subprocess.run(
        [sys.executable, "-m", "tests.tasks.test_sharding", str(file)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        timeout=240,
    )
    return [torch.load(f"{file}{rank}") for rank in range(RANKS)]


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_find_what_one_whole_model_shows(found: list[dict[str, Any]], name: str) -> None:
    expected = expected_of(name)
    ours, other = found[0][name], found[1][name]
    assert ours["sharded"]
    assert ours["names"] == expected["names"]
    assert ours["blocks"] == expected["blocks"], "families still know the blocks"
    torch.testing.assert_close(ours["outputs"], expected["outputs"])
    for key in ("gradients", "of masks", "value", "norm", "norms", "average", "state"):
        assert ours[key].keys() == expected[key].keys()
        for part, value in expected[key].items():
            assert torch.allclose(ours[key][part], value, rtol=1e-3, atol=2e-5), f"{key} of {part}"
            assert torch.equal(other[key][part], ours[key][part]), "all ranks find the same"


@pytest.mark.parametrize("name", NAMES)
def test_a_rank_holds_little_more_than_its_share(found: list[dict[str, Any]], name: str) -> None:
    numbers = sum(parameter.numel() for parameter in tiny.build(name).parameters())
    for rank in range(RANKS):
        assert 0.45 * numbers < found[rank][name]["held"] < 0.6 * numbers


def test_a_copy_that_is_whole_stays_so() -> None:
    model = tiny.build("clip")
    assert not is_sharded(model)
    before = copy.deepcopy(model.state_dict())
    gather_(model)
    release_(model)
    assert all(torch.equal(whole(value), before[name]) for name, value in model.state_dict().items())


def main(file: str) -> None:
    """Fork the ranks, after everything has been imported once."""
    children = []
    for rank in range(RANKS):
        child = os.fork()
        if child:
            children.append(child)
            continue
        dist.init_process_group("gloo", init_method=f"file://{file}.store", rank=rank, world_size=RANKS)
        torch.save({name: found_by(rank, name) for name in NAMES}, f"{file}{rank}")
        dist.destroy_process_group()
        os._exit(0)
    if any(os.waitpid(child, 0)[1] for child in children):
        sys.exit("a rank failed")


if __name__ == "__main__":
    main(sys.argv[1])
