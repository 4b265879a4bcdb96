"""What may remain: the budget, whether it can be met, and the units that meet it.

Source: UPop, Shi et al., ICML 2023, https://arxiv.org/abs/2301.13741: one list over all units, from which the worst go
until their cost reaches the target, and at least one unit per site stays. We deviate in three ways: costs are exact and
those of the finished plan (the authors weigh an attention unit as 36 neurons, whatever the model), any currency may be
the target, and floors, ceilings, multiples and targets per modality hold the list back where it would ruin a part of
the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upop.messages import closest
from upop.search import bounds
from upop.search.allocation import ALLOCATIONS, Allocation
from upop.search.ranking import Limit, Ranking, Steps, nearest, refine, smallest_step
from upop.search.reach import Part, check_reach, parts
from upop.structure import KINDS, Currency, Kind, Modality, Site

Scope = Literal["prunable", "model"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


class Cost(Protocol):
    """What units cost, exactly. Costs of modalities add up; those of sites in one block (heads, head-dims) need not."""

    def prunable(self, currency: Currency, modality: Modality | None = None) -> int:
        """Cost of all units, of one modality if given."""

    def removed(self, kept: Mapping[str, int], currency: Currency, modality: Modality | None = None) -> int:
        """Cost removed, of one modality if given, when ``kept`` units stay per site; other sites stay whole.

        It never falls when fewer units are kept.
        """

    def whole(self, currency: Currency) -> int:
        """Cost of the whole model."""


@dataclass(frozen=True)
class Budget:
    """What a search has to remove, and what it must not.

    Attributes:
        removed: Fraction to remove, between 0 and 1 (exclusive), of ``of`` within ``scope``. May be left out with
            ``fractions``.
        of: Currency: ``params``, ``flops`` or ``latency``.
        scope: What ``removed`` is a fraction of: the ``prunable`` units, or the whole ``model``.
        multiple_of: The units kept at a site are a multiple of this, by kind (or all of them). Kinds left out: 1.
        floor: At least this fraction is removed. The key is a modality (a fraction of its prunable cost in ``of``) or a
            glob over site names (a fraction of each site's units).
        ceiling: At most this fraction is removed; keys as for ``floor``.
        allocation: ``unified`` (one list), ``per_modality`` (a list and a target for each) or ``uniform`` (about the
            same share of every site).
        fractions: Fraction to remove of each modality's prunable cost, for ``per_modality``; a modality that is left
            out stays whole. Without it every modality loses the same fraction.
        tolerance: How far the plan may be from the target, as a fraction of the target.

    Raises:
        ValueError: If a value is out of range or unknown, or two contradict each other.
    """

    removed: float | None
    of: Currency = "params"
    scope: Scope = "prunable"
    multiple_of: Mapping[Kind, int] = field(default_factory=dict)
    floor: Mapping[str, float] = field(default_factory=dict)
    ceiling: Mapping[str, float] = field(default_factory=dict)
    allocation: Allocation = "unified"
    fractions: Mapping[str, float] = field(default_factory=dict)
    tolerance: float = 0.005

    def __post_init__(self) -> None:
        self._check_names()
        self._check_numbers()
        for key, least in self.floor.items():
            if least > self.ceiling.get(key, 1.0):
                raise ValueError(
                    f"search.floor is {least!r} and search.ceiling {self.ceiling[key]!r} for {key!r}; the floor (at "
                    "least removed) cannot exceed the ceiling (at most removed)"
                )

    def _check_names(self) -> None:
        """Refuse names that do not exist, and settings that need another one."""
        choices = {"of": (self.of, get_args(Currency)), "scope": (self.scope, SCOPES)}
        for what, (given, allowed) in {**choices, "allocation": (self.allocation, ALLOCATIONS)}.items():
            if given not in allowed:
                raise ValueError(
                    f"search.{what} is {given!r}; choose one of {sorted(allowed)}{closest(str(given), allowed)}"
                )
        for kind in self.multiple_of:
            if kind not in KINDS:
                raise ValueError(
                    f"search.multiple_of names kind {kind!r}; there are {sorted(KINDS)}{closest(str(kind), KINDS)}"
                )
        if self.fractions and self.allocation != "per_modality":
            raise ValueError(
                f"search.fractions is set, but search.allocation is {self.allocation!r}; set it to 'per_modality'"
            )

    def _check_numbers(self) -> None:
        """Refuse numbers that are out of range."""
        if self.removed is None and not self.fractions:
            raise ValueError("search.removed is missing; give the fraction to remove, between 0 and 1 (exclusive)")
        if self.removed is not None and not (_within(self.removed) and 0 < self.removed < 1):
            raise ValueError(
                f"search.removed is {self.removed!r}; it is the fraction to remove, between 0 and 1 (exclusive)"
            )
        for what in ("floor", "ceiling"):
            for key, value in getattr(self, what).items():
                if not _within(value):
                    raise ValueError(f"search.{what} is {value!r} for {key!r}; it is a fraction removed, from 0 to 1")
        for key, value in self.fractions.items():
            if not (_within(value) and value < 1):
                raise ValueError(
                    f"search.fractions is {value!r} for {key!r}; it is the fraction to remove, from 0 to 1 (exclusive)"
                )
        if self.fractions and not any(self.fractions.values()):
            raise ValueError("search.fractions are all 0, so nothing would be removed; make one of them larger")
        for kind, multiple in self.multiple_of.items():
            if type(multiple) is not int or multiple < 1:
                raise ValueError(f"search.multiple_of is {multiple!r} for {kind!r}; it is a whole number, at least 1")
        if not (_within(self.tolerance) and self.tolerance < 1):
            raise ValueError(
                f"search.tolerance is {self.tolerance!r}; it is a fraction of the target, from 0 to 1 (exclusive)"
            )

    def target(self, cost: Cost) -> float:
        """Cost to remove, in the currency ``of``."""
        if self.fractions:
            return sum(
                value * cost.prunable(self.of, cast(Modality, modality)) for modality, value in self.fractions.items()
            )
        return (self.removed or 0.0) * self.base(cost)

    def base(self, cost: Cost) -> int:
        """Cost that ``removed`` is a fraction of, in the currency ``of``."""
        return cost.whole(self.of) if self.scope == "model" else cost.prunable(self.of)


def check(budget: Budget, sites: Sequence[Site], cost: Cost) -> None:
    """Refuse a budget that the sites cannot meet, before any training.

    Ends with a trial selection that removes about the same share of every site, so that units that are too coarse for
    the tolerance are found out now rather than at the end of the search.

    Args:
        budget: The budget.
        sites: Sites that the search may cut.
        cost: Cost of their units.

    Raises:
        ValueError: If a key selects nothing, a multiple is larger than a site, floor and ceiling contradict each other,
            the fractions imply another total than ``removed``, the target is out of reach, the units are too coarse, or
            removing them saves nothing (which a measured cost may say).
    """
    check_settings(budget, sites)
    if cost.prunable(budget.of) <= 0:
        raise ValueError(
            f"removing units saves no {budget.of} here: choose another search.of, or, where it was measured, a larger "
            "batch (search.latency.batch_size)"
        )
    target, base = budget.target(cost), budget.base(cost)
    if budget.removed is not None and abs(budget.removed * base - target) > budget.tolerance * target:
        raise ValueError(
            f"search.removed is {budget.removed!r}, but search.fractions imply {target / base:.4g} of the "
            f"{budget.scope} {budget.of}; set search.removed to that, or leave it out"
        )
    for part in parts(budget, sites, cost):
        check_reach(budget, part, cost)
    even = {site.name: (torch.arange(site.units, dtype=torch.float64) + 0.5) / site.units for site in sites}
    select(even, sites, cost, budget)


def check_settings(budget: Budget, sites: Sequence[Site]) -> None:
    """The part of :func:`check` that needs no cost, which may have to be measured.

    Args:
        budget: The budget.
        sites: Sites that the search may cut.

    Raises:
        ValueError: If a key selects nothing, a multiple is larger than a site, or floor and ceiling contradict each
            other.
    """
    if not sites:
        raise ValueError("there are no sites to cut; name the unit kinds to search, such as head_dim and neuron")
    bounds.check_keys("floor", budget.floor, sites)
    bounds.check_keys("ceiling", budget.ceiling, sites)
    bounds.check_modalities("fractions", budget.fractions, sites)
    bounds.check_multiples(budget.multiple_of, sites)
    bounds.check_grids(sites, budget.floor, budget.ceiling, budget.multiple_of)


def select(
    priorities: Mapping[str, Tensor], sites: Sequence[Site], cost: Cost, budget: Budget, share: float = 1.0
) -> dict[str, tuple[int, ...]]:
    """Choose the units to keep, so that the finished plan removes ``share`` of the budget's target.

    The list is sorted by priority (ties by site order, then unit number), and its length bisected on the cost of the
    finished plan; then single sites step up or down, in priority order, until the plan is within the tolerance. It
    keeps no state: a unit that was dropped may be back at the next call. With ``share`` below 1 floors and fractions
    are scaled by it, ceilings are not, and the nearest plan is returned however far it is.

    Args:
        priorities: Priority of each unit by site name, ``(U,)``; the lowest goes first.
        sites: Sites to cut.
        cost: Cost of their units.
        budget: A budget that :func:`check` has passed.
        share: Share of the target that is to be removed now, from 0 to 1; 1 for the final plan.

    Returns:
        Unit numbers to keep by site name, ascending, at least one.

    Raises:
        ValueError: If priorities are missing or not finite, ``share`` is out of range, or, with ``share`` 1, no plan
            within the tolerance was found.
    """
    if not _within(share):
        raise ValueError(f"share is {share!r}; it is the share of the target to remove now, from 0 to 1")
    values = {site.name: _values(priorities, site) for site in sites}
    bounds.check_grids(sites, budget.floor, budget.ceiling, budget.multiple_of)
    keep: dict[str, tuple[int, ...]] = {}
    for part in parts(budget, sites, cost):
        keep.update(_select(values, part, cost, budget, share))
    return {site.name: keep[site.name] for site in sites}


def _select(
    values: Mapping[str, NDArray[np.float64]], part: Part, cost: Cost, budget: Budget, share: float
) -> dict[str, tuple[int, ...]]:
    """Select within one list; see :func:`select`."""
    grids = {
        site.name: bounds.grid(site, budget.floor, budget.ceiling, budget.multiple_of, share) for site in part.sites
    }
    ranking = Ranking({site.name: values[site.name] for site in part.sites}, grids)

    def removed(steps: Steps) -> float:
        return cost.removed(ranking.kept(steps), budget.of, part.modality)

    limits = _limits(ranking, part, cost, budget, share)
    goal, tolerance = share * part.target, budget.tolerance * part.target
    steps = nearest(ranking, removed, goal, list(limits.values()))
    steps = refine(ranking, steps, removed, goal, tolerance, list(limits.values()))
    if share == 1:
        for modality, limit in limits.items():
            if not limit.holds(steps):
                raise ValueError(
                    f"no plan removes between {limit.least:,.0f} and {limit.most:,.0f} {budget.of} of modality "
                    f"{modality!r}; {limit.removed(steps):,} is nearest; widen search.floor and search.ceiling"
                )
        # One part in a billion of slack, so that a tolerance of 0 can be met in floats.
        if abs(removed(steps) - goal) > tolerance + 1e-9 * goal:
            raise ValueError(_coarse(ranking, steps, removed(steps), part, cost, budget))
    return ranking.keep(steps)


def _limits(ranking: Ranking, part: Part, cost: Cost, budget: Budget, share: float) -> dict[Modality, Limit]:
    """The floors and ceilings of whole modalities, as costs."""
    limits = {}
    for modality in {site.modality: None for site in part.sites}:
        if modality not in budget.floor and modality not in budget.ceiling:
            continue

        def removed(steps: Steps, modality: Modality = modality) -> float:
            return cost.removed(ranking.kept(steps), budget.of, modality)

        units = cost.prunable(budget.of, modality)
        least = share * budget.floor.get(modality, 0.0) * units
        most = budget.ceiling[modality] * units if modality in budget.ceiling else math.inf
        here = np.array([site.modality == modality for site in part.sites])
        limits[modality] = Limit(here, removed, least, most)
    return limits


def _coarse(ranking: Ranking, steps: Steps, reached: float, part: Part, cost: Cost, budget: Budget) -> str:
    """Why the final plan is not within the tolerance."""

    def removed(steps: Steps) -> float:
        return cost.removed(ranking.kept(steps), budget.of, part.modality)

    target = max(part.target, 1.0)
    text = (
        f"the nearest plan removes {reached:,} {budget.of}, the target is {part.target:,.0f} "
        f"({(reached - part.target) / target:+.2%}, search.tolerance is {budget.tolerance:.2%})"
    )
    smallest = smallest_step(ranking, steps, removed)
    # Where the steps are fine, or there are none, it is not the units that are too coarse.
    if smallest is None or smallest[1] <= budget.tolerance * target:
        return f"{text}; the sites are at their limits: loosen search.floor, search.ceiling or search.multiple_of"
    site = next(site for site in part.sites if site.name == smallest[0])
    multiple = budget.multiple_of.get(site.kind, 1)
    return (
        f"{text}; the smallest step is {multiple} {site.kind} at site {site.name!r}, {smallest[1]:,} {budget.of} = "
        f"{smallest[1] / target:.1%} of the target; add finer units (head_dim, neuron), lower search.multiple_of, "
        "or raise search.tolerance"
    )


def _values(priorities: Mapping[str, Tensor], site: Site) -> NDArray[np.float64]:
    """The checked priorities of one site, ``(U,)``."""
    if site.name not in priorities:
        raise ValueError(f"no priorities for site {site.name!r}; give them for every site")
    value = priorities[site.name].detach().to("cpu", torch.float64).numpy()
    if value.shape != (site.units,) or not np.isfinite(value).all():
        bad = int((~np.isfinite(value)).sum())
        raise ValueError(
            f"priorities of site {site.name!r} have shape {value.shape!r}, {bad} of them not finite; "
            f"it has {site.units} units, and each needs a finite number"
        )
    return value


def _within(value: object) -> bool:
    """Whether ``value`` is a number from 0 to 1."""
    return isinstance(value, int | float) and 0 <= value <= 1
