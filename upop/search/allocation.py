"""From scores to one list: priorities that let units of different kinds and sites be ranked together.

Source: UPop, Shi et al., ICML 2023, https://arxiv.org/abs/2301.13741: scores are standardised per kind, so that
attention units and neurons of all modalities share one ranking.

Shapes: ``U`` units of a site.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from upop.messages import closest, some
from upop.structure import Site

Allocation = Literal["unified", "per_modality", "uniform"]
ALLOCATIONS: tuple[Allocation, ...] = get_args(Allocation)


def priorities(scores: Mapping[str, Tensor], sites: Sequence[Site], allocation: str = "unified") -> dict[str, Tensor]:
    """One priority per unit, comparable over all sites; the lowest goes first.

    ``unified`` and ``per_modality`` standardise the scores of each kind, over all its sites in all modalities, to mean
    0 and standard deviation 1; a kind whose scores are all equal gets 0. ``uniform`` ranks within each site,
    ``(rank + 0.5) / U``, so that every site loses about the same share.

    Args:
        scores: Worth of each unit by site name, ``(U,)``; higher means keep.
        sites: Sites to rank.
        allocation: ``unified``, ``per_modality`` or ``uniform``.

    Returns:
        Priorities by site name, ``(U,)``, float64 on the CPU.

    Raises:
        ValueError: If the allocation is unknown, or a site's scores are missing, of another shape or not finite.
    """
    if allocation not in ALLOCATIONS:
        raise ValueError(
            f"search.allocation is {allocation!r}; choose one of {sorted(ALLOCATIONS)}"
            f"{closest(str(allocation), ALLOCATIONS)}"
        )
    values = {site.name: _values(scores, site) for site in sites}
    if allocation == "uniform":
        return {name: _quantiles(value) for name, value in values.items()}
    found: dict[str, Tensor] = {}
    for kind in {site.kind: None for site in sites}:
        names = [site.name for site in sites if site.kind == kind]
        together = _standardise(torch.cat([values[name] for name in names]))
        found.update(zip(names, together.split([len(values[name]) for name in names]), strict=True))
    return {site.name: found[site.name] for site in sites}


def _values(scores: Mapping[str, Tensor], site: Site) -> Tensor:
    """The checked scores of one site in float64 on the CPU, ``(U,)``."""
    if site.name not in scores:
        raise ValueError(f"no scores for site {site.name!r}; there are scores for {some(sorted(scores))}")
    value = scores[site.name].detach().to("cpu", torch.float64)
    if value.shape != (site.units,):
        raise ValueError(f"scores of site {site.name!r} have shape {tuple(value.shape)!r}; it has {site.units} units")
    if not bool(torch.isfinite(value).all()):
        bad = int((~torch.isfinite(value)).sum())
        raise ValueError(
            f"{bad} of {site.units} scores of site {site.name!r} are not finite; leave out steps with such gradients"
        )
    return value


def _standardise(value: Tensor) -> Tensor:
    """``value`` at mean 0 and standard deviation 1, or 0 where all are equal."""
    spread = value.std(correction=0)
    # Rounding of the mean gives equal scores a tiny spread, and dividing by it would make noise of them.
    if float(spread) <= 1e-12 * float(value.abs().max()):
        return torch.zeros_like(value)
    return (value - value.mean()) / spread


def _quantiles(value: Tensor) -> Tensor:
    """Rank of each unit within its site as a number between 0 and 1; equal scores rank by unit number."""
    ranks = torch.empty_like(value)
    ranks[value.argsort(stable=True)] = torch.arange(len(value), dtype=value.dtype)
    return (ranks + 0.5) / len(value)
