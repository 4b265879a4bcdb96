"""Physically remove the units that a plan drops, so that the model gets smaller and not merely sparser.

A mask sets a unit to zero but still pays for its weights. This module slices the weights: every layer named by a
:class:`~upop.structure.Cut` gets smaller. It knows nothing of transformers, scores or training.

Source: UPop, Shi et al., ICML 2023, https://arxiv.org/abs/2301.13741, the step between its search and its retraining.
Unlike the authors' code, the attention scale and every bias survive the cut.

Shapes: ``U`` units of a site, ``K`` units kept, ``O``/``I`` output/input features of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from upop.structure import Layer, Plan, Side, Site


@torch.no_grad()
def shrink_(model: nn.Module, sites: Sequence[Site], plan: Plan) -> None:
    """Cut the units that ``plan`` drops out of ``model``, in place.

    Afterwards the model computes what the masked model computed, up to float rounding, with fewer parameters. Weights
    keep their device, dtype and ``requires_grad``, but are new tensors: build the optimizer after this call. All
    checks run before the first cut, so a call that raises has not changed ``model``. Works on the meta device too.

    Args:
        model: Model whose module names the cuts refer to, without masks attached.
        sites: All sites of ``model`` for the unit kinds of the plan, as its family lists them.
        plan: Unit numbers to keep, per site.

    Raises:
        ValueError: If ``plan`` names an unknown site, keeps no unit, repeats one, or counts past the last one, if it
            was made for another model, if masks are attached, or if a layer is not of the size that its site says.
        TypeError: If a cut points at a layer that cannot be sliced.
    """
    plan.check(sites)
    layers = [(_linear(model, layer.name), side, keep) for layer, side, keep in _slices(sites, plan)]
    for site in sites:  # those that stay whole too: their sizes are written as well
        for cut in site.cuts:
            _check(model, cut.layer)
        for size in site.sizes:
            getattr(model.get_submodule(size.module), size.attribute)

    for linear, side, keep in layers:
        _slice_(linear, side, keep)
    for site in sites:
        kept = len(plan.keep.get(site.name, range(site.units)))
        _resize_(model, site, kept)
        _fold_(model, site, kept)


def _slices(sites: Sequence[Site], plan: Plan) -> list[tuple[Layer, Side, Tensor]]:
    """Rows or columns to keep of every layer side that loses any: those that every site sharing it keeps."""
    alive: dict[tuple[str, Side], Tensor] = {}
    layers: dict[tuple[str, Side], Layer] = {}
    for site in sites:
        keep = plan.keep.get(site.name)
        if keep is None or len(keep) == site.units:
            continue
        for cut in site.cuts:
            key = (cut.layer.name, cut.side)
            layers[key] = cut.layer
            positions = cut.positions()
            mine = torch.zeros(positions.numel(), dtype=torch.bool)
            mine[positions[list(keep)].flatten()] = True
            alive[key] = alive[key] & mine if key in alive else mine
    return [(layers[key], key[1], mask.nonzero().flatten()) for key, mask in alive.items()]


def _check(model: nn.Module, layer: Layer) -> None:
    """Refuse a layer that is not what its site says."""
    linear = _linear(model, layer.name)
    if parametrize.is_parametrized(linear):
        raise ValueError(f"{layer.name} is parametrised (masks, weight norm, ...); detach that before the cut")
    if (linear.in_features, linear.out_features) != (layer.in_features, layer.out_features):
        raise ValueError(
            f"{layer.name} has {linear.in_features} inputs and {linear.out_features} outputs, its site says "
            f"{layer.in_features} and {layer.out_features}; was the model cut already?"
        )


def _linear(model: nn.Module, name: str) -> nn.Linear:
    linear = model.get_submodule(name)
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"cannot cut {name}: it is a {type(linear).__name__}, a torch.nn.Linear can be cut")
    return linear


def _slice_(linear: nn.Linear, side: Side, keep: Tensor) -> None:
    """Keep these rows (``out``) or columns (``in``) of a linear layer."""
    keep = keep.to(linear.weight.device)
    linear.weight = _part(linear.weight, 0 if side == "out" else 1, keep)
    if side == "in":
        linear.in_features = len(keep)
        return
    linear.out_features = len(keep)
    if linear.bias is not None:
        linear.bias = _part(linear.bias, 0, keep)


def _part(parameter: Tensor, dim: int, keep: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().index_select(dim, keep), requires_grad=parameter.requires_grad)


def _resize_(model: nn.Module, site: Site, kept: int) -> None:
    """Let the modules of a site tell the truth about their size."""
    for size in site.sizes:
        value = kept if size.layer is None else _linear(model, size.layer).out_features // size.parts
        setattr(model.get_submodule(size.module), size.attribute, value)


def _fold_(model: nn.Module, site: Site, kept: int) -> None:
    """Keep the dense attention scale where the module takes ``1 / sqrt(head size)`` of what it finds.

    The queries take the factor ``sqrt(kept / units)``, so that ``q k / sqrt(kept)`` is what ``q k / sqrt(units)`` was.
    """
    if site.fold is None or kept == site.units:
        return
    queries = _linear(model, site.fold.layer)
    rows = queries.out_features // site.fold.parts
    factor = math.sqrt(kept / site.units)
    queries.weight[:rows] *= factor
    if queries.bias is not None:
        queries.bias[:rows] *= factor
    attention = model.get_submodule(site.fold.module)
    if hasattr(attention, "scale"):  # timm's unfused path uses it
        setattr(attention, "scale", kept**-0.5)  # noqa: B010 (its class is not ours)
