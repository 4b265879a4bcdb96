"""FSDP2: weights, gradients and optimizer states of a model shared out over the ranks, a slice of every tensor each.

Each transformer block gathers its weights for its forward and backward pass and lets them go again; so does each tower
with what it holds besides, its embeddings above all. What is small and lies outside of the towers stays whole on every
rank, and its gradients are averaged: projections, heads and scalars such as the temperature of a contrast. Masks scale
the gathered weights, so they stay whole too.

In a search the masked copy of each gathered weight waits for the backward pass, unless gradient checkpointing computes
the block anew: with it a rank holds no more than one block beside its slices, without it half the model or more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from upop.families import find_blocks


def shard_(model: nn.Module, mesh: DeviceMesh) -> None:
    """Share out the weights of ``model`` over the ranks of ``mesh``, in place; every rank has to hold the same.

    Outside of its forward and backward pass a part of the model then has :class:`DTensor` parameters. Build the
    optimizer after this call. Masks have to be attached before it.

    Args:
        model: Dense, masked or cut model.
        mesh: The ranks, one dimension.

    Raises:
        ValueError: If no block of ``model`` is known.
    """
    blocks = find_blocks(model)
    towers = dict.fromkeys(path.partition(".")[0] for path in blocks)
    for path in [*blocks, *towers]:
        part = model.get_submodule(path)
        own, scalars = type(part), {parameter for parameter in part.parameters() if parameter.dim() == 0}
        # resharded at once, also the outermost: the moving average meets the same slices at any time of a step
        fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=scalars)
        for name in ("__name__", "__module__"):  # of the class that FSDP made; families know a block by these
            setattr(type(part), name, getattr(own, name))


def is_sharded(module: nn.Module) -> bool:
    """Whether a part of ``module`` is shared out over ranks."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


def gather_(model: nn.Module) -> None:
    """Make all weights of a sharded model whole on every rank, until :func:`release_`.

    In between the ranks may call it, or parts of it, as often as each likes: nobody waits for anybody.
    """
    for part in _sharded_parts(model):
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()


def release_(model: nn.Module) -> None:
    """Keep no more than this rank's slices of a model that :func:`gather_` made whole."""
    for part in _sharded_parts(model):
        part.set_reshard_after_forward(True, recurse=False)
        part.reshard()


def _sharded_parts(model: nn.Module) -> Iterator[FSDPModule]:
    return (part for part in model.modules() if isinstance(part, FSDPModule))


def average_replicated_(parameters: Iterable[nn.Parameter], mean: Callable[[Tensor], Tensor]) -> None:
    """Average the gradients of the parameters that are whole on every rank, which FSDP leaves alone.

    Args:
        parameters: All parameters; slices are passed over.
        mean: Mean of a tensor over the ranks, elementwise.
    """
    gradients = [p.grad for p in parameters if p.grad is not None and not isinstance(p, DTensor)]
    if not gradients:
        return
    flat = mean(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def clip_(parameters: Iterable[nn.Parameter], limit: float, algorithm: str) -> None:
    """Clip gradients of which some are sharded, by the norm of them all or each number.

    Args:
        parameters: All parameters that train.
        limit: Largest norm, or largest magnitude of a number.
        algorithm: ``norm`` or ``value``.
    """
    found = [parameter for parameter in parameters if parameter.grad is not None]
    sharded = [parameter for parameter in found if isinstance(parameter, DTensor)]
    parts = [part for part in (sharded, [p for p in found if not isinstance(p, DTensor)]) if part]
    if algorithm == "value":
        for part in parts:
            nn.utils.clip_grad_value_(part, limit)
        return
    norms: list[Any] = [nn.utils.get_total_norm([p.grad for p in part if p.grad is not None]) for part in parts]
    total = torch.stack([norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]).norm()
    for part in parts:
        nn.utils.clip_grads_with_norm_(part, limit, total)
