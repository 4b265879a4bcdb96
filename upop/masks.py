"""Masks on sites: attach them to a model, write them, collect their gradients, take them off without a trace.

A mask scales the rows of the weights (and biases) that produce a unit: queries, keys and values of a head or head-dim
position, the first layer of an MLP. That is the same mathematics as multiplying the activation before the
non-linearity, works with every attention kernel and with fused projections, and costs O(weights) instead of
O(activations).

Source: UPop, Shi et al., ICML 2023, https://arxiv.org/abs/2301.13741, section 3. Unlike the authors' code the masks
are no parameters of the model: no optimizer, weight decay, state dict or gradient clipping ever sees them.

Shapes: ``U`` units of a site, ``O`` output features of a layer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from upop.shards import summoned
from upop.structure import Cut, Plan, Site


class Mask:
    """The mask of one site: a leaf tensor ``(U,)`` in fp32 that collects gradients. 1 = whole, 0 = gone."""

    def __init__(self, site: Site, device: torch.device) -> None:
        self.site = site
        self.value = torch.ones(site.units, device=device, requires_grad=True)

    def to(self, device: torch.device) -> Tensor:
        """The mask on ``device``; it moves there for good when the model has moved, but not for a dry run on meta."""
        if self.value.device == device:
            return self.value
        moved = self.value.detach().to(device).requires_grad_()
        if device.type != "meta":
            self.value = moved
        return moved


class RowMask(nn.Module):
    """Parametrisation of one weight or bias: scales each row by the masks of the units that own it.

    Where heads and head-dims share a layer, a row is scaled by the product of both masks.
    """

    def __init__(self, parts: Sequence[tuple[Mask, Cut]]) -> None:
        super().__init__()
        self.parts = tuple(parts)  # no buffers: nothing of a mask belongs in a state dict

    def forward(self, weight: Tensor) -> Tensor:
        """Masked ``weight``, of the same shape ``(O, ...)``."""
        view = self.parts[0][1].view
        factor: Tensor | None = None
        for mask, cut in self.parts:
            shape = [1] * len(view)
            shape[cut.dim] = -1
            part = mask.to(weight.device).to(weight.dtype).view(shape)
            factor = part if factor is None else factor * part
        if factor is None:
            return weight
        if weight.dim() == 1:
            return (weight.view(view) * factor).view(-1)
        return (weight.view(*view, -1) * factor.unsqueeze(-1)).view(weight.shape)


class Masks:
    """The masks of a model, attached when made.

    Args:
        model: Model to attach to. It computes what it computed before until a mask is written.
        sites: Sites to mask, as the families list them.

    Raises:
        ValueError: If no site is given, or if a layer has masks or another parametrisation already, or is not of the
            size that its site says.
        TypeError: If a site names a layer that cannot be masked.
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site]) -> None:
        if not sites:
            raise ValueError("no sites to mask; list them with upop.families.find_sites")
        self._layers = _producers(model, sites)
        device = next(model.parameters()).device
        self._masks = {site.name: Mask(site, device) for site in sites}
        self._attached = True
        for layer, cuts in self._layers:
            parts = [(self._masks[name], cut) for name, cut in cuts]
            for tensor in ("weight", "bias"):
                if getattr(layer, tensor) is not None:
                    parametrize.register_parametrization(layer, tensor, RowMask(parts), unsafe=True)

    def values(self) -> dict[str, Tensor]:
        """A copy of every mask, ``(U,)`` by site name."""
        return {name: mask.value.detach().clone() for name, mask in self._masks.items()}

    @torch.no_grad()
    def write_(self, values: Mapping[str, Tensor]) -> None:
        """Write masks, by site name; sites that are not named keep theirs.

        Raises:
            ValueError: If a site is unknown, or a mask is of another length or not finite.
        """
        for name, value in values.items():
            if name not in self._masks:
                raise ValueError(f"no mask at site {name!r}; there are masks at {sorted(self._masks)[:3]}, ...")
            units = self._masks[name].site.units
            if value.shape != (units,) or not torch.isfinite(value).all():
                raise ValueError(f"mask for site {name!r} must be {units} finite numbers, got {tuple(value.shape)}")
        for name, value in values.items():
            self._masks[name].value.copy_(value)

    def gradients(self) -> dict[str, Tensor]:
        """The gradient that each mask has collected since :meth:`clear`, ``(U,)`` fp32; zeros where none arrived."""
        return {
            name: torch.zeros_like(mask.value) if mask.value.grad is None else mask.value.grad.detach()
            for name, mask in self._masks.items()
        }

    def fingerprint(self) -> int:
        """A number of 63 bits that differs when any bit of any mask does, up to one chance in as many."""
        digest = hashlib.blake2b(digest_size=8)
        for mask in self._masks.values():
            digest.update(mask.value.detach().cpu().numpy().tobytes())
        return int.from_bytes(digest.digest(), "big") >> 1

    def clear(self) -> None:
        """Forget the gradients collected so far."""
        for mask in self._masks.values():
            mask.value.grad = None

    def detach(self) -> None:
        """Take the masks off; the dense weights come back as the same parameters, unmasked. Twice is like once."""
        if not self._attached:
            return
        for layer, _ in self._layers:
            for tensor in ("weight", "bias"):
                if parametrize.is_parametrized(layer, tensor):
                    parametrize.remove_parametrizations(layer, tensor, leave_parametrized=False)
        self._attached = False


def _producers(model: nn.Module, sites: Sequence[Site]) -> list[tuple[nn.Linear, list[tuple[str, Cut]]]]:
    """The layers whose rows belong to units, each with the sites that share it; all checks, no mutation."""
    shared: dict[str, list[tuple[str, Cut]]] = {}
    for site in sites:
        for cut in site.cuts:
            if cut.side == "out":
                shared.setdefault(cut.layer.name, []).append((site.name, cut))
    layers = []
    for name, cuts in shared.items():
        layer = model.get_submodule(name)
        if not isinstance(layer, nn.Linear):
            raise TypeError(f"cannot mask {name}: it is a {type(layer).__name__}, a torch.nn.Linear can be masked")
        if has_masks(layer):
            raise ValueError(f"{name} has masks already; detach them first")
        if parametrize.is_parametrized(layer):
            raise ValueError(
                f"{name} is parametrised (weight norm, ...), which detaching masks would undo; remove that"
            )
        if layer.out_features != cuts[0][1].layer.out_features:
            raise ValueError(
                f"{name} has {layer.out_features} rows, its site says {cuts[0][1].layer.out_features}; "
                "list the sites of this model again"
            )
        layers.append((layer, cuts))
    return layers


def mask_values(sites: Sequence[Site], plan: Plan, dropped: float = 0.0) -> dict[str, Tensor]:
    """Masks of a plan, ``(U,)`` by site name: 1 where it keeps a unit, ``dropped`` elsewhere."""
    values = {}
    for site in sites:
        value = torch.full((site.units,), dropped)
        value[list(plan.keep.get(site.name, range(site.units)))] = 1.0
        values[site.name] = value
    return values


def check_same(fingerprints: Sequence[int], step: int) -> None:
    """Refuse masks that differ between ranks, which would train models that are not the same.

    Args:
        fingerprints: What :meth:`Masks.fingerprint` gave on each rank, in their order.
        step: Optimizer steps taken, for the message.

    Raises:
        ValueError: If they differ; on every rank, where every rank asks.
    """
    usual = max(fingerprints, key=fingerprints.count)  # the first of equally many, rank 0's if in doubt
    others = [rank for rank, found in enumerate(fingerprints) if found != usual]
    if others:
        raise ValueError(
            f"at step {step} the masks of ranks {others} differ from those of the other "
            f"{len(fingerprints) - len(others)}: they no longer train the same model; check that all ranks run the "
            "same versions on the same kind of device, that no callback writes masks or weights on some ranks only, "
            "and the memory of those devices; then run the same command to go on from the last checkpoint"
        )


def has_masks(module: nn.Module) -> bool:
    """Whether masks are attached to a layer of ``module``."""
    return any(isinstance(part, RowMask) for part in module.modules())


@torch.no_grad()
def unit_norms(model: nn.Module, sites: Sequence[Site]) -> dict[str, Tensor]:
    """Root mean square of all dense weights that each unit owns, ``(U,)`` fp32 by site name.

    Rows and biases of the producing layers and columns of the consuming one count; the mean makes units of different
    sizes comparable.

    Args:
        model: Model, with or without masks; the masks do not count. Where it is sharded, all ranks have to ask.
        sites: Its sites.
    """
    norms = {}
    for site in sites:
        squares, numbers = torch.zeros(site.units), 0
        for cut in site.cuts:
            layer = model.get_submodule(cut.layer.name)
            for tensor in ("weight", "bias"):
                weight = _dense(layer, tensor)
                if weight is None or (tensor == "bias" and cut.side == "in"):
                    continue
                with summoned(weight) as value:
                    rows = value if cut.side == "out" else value.t()
                    square = rows.float().square().reshape(rows.shape[0], -1).sum(1)
                    squares += square.view(cut.view).movedim(cut.dim, 0).reshape(cut.units, -1).sum(1).cpu()
                    numbers += rows.numel() // cut.units
        norms[site.name] = (squares / numbers).sqrt()
    return norms


def _dense(layer: nn.Module, tensor: str) -> Tensor | None:
    parametrizations: Any = getattr(layer, "parametrizations", {})
    found: Tensor | None = parametrizations[tensor].original if tensor in parametrizations else getattr(layer, tensor)
    return found
