"""Which targets can be reached at all: the least and the most that may go, and what holds it there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from upop.search import bounds
from upop.structure import Kind, Modality, Site

if TYPE_CHECKING:
    from upop.search.budget import Budget, Cost


@dataclass(frozen=True)
class Part:
    """Sites that share one list, and the cost to remove from them: all of them, or those of one modality.

    Attributes:
        modality: The modality, or None for all sites.
        sites: The sites.
        target: Cost to remove from them, in the budget's currency.
    """

    modality: Modality | None
    sites: Sequence[Site]
    target: float


def parts(budget: Budget, sites: Sequence[Site], cost: Cost) -> list[Part]:
    """The lists that the budget asks for, each with its target: one, or one per modality."""
    target = budget.target(cost)
    if budget.allocation != "per_modality":
        return [Part(None, sites, target)]
    lists: list[Part] = []
    for modality in {site.modality: None for site in sites}:
        units = cost.prunable(budget.of, modality)
        goal = budget.fractions.get(modality, 0.0) if budget.fractions else target / cost.prunable(budget.of)
        lists.append(Part(modality, [site for site in sites if site.modality == modality], goal * units))
    return lists


def reach(budget: Budget, part: Part, cost: Cost) -> tuple[float, float]:
    """The least and the most cost that can go from the sites of a list under floors, ceilings and multiples.

    A bound, met up to one step of a site where a modality's floor or ceiling holds it.

    Raises:
        ValueError: If a modality's floor and ceiling contradict each other.
    """
    grids = [bounds.grid(site, budget.floor, budget.ceiling, budget.multiple_of) for site in part.sites]
    names = [site.name for site in part.sites]
    fewest = dict(zip(names, (int(grid[0]) for grid in grids), strict=True))
    fullest = dict(zip(names, (int(grid[-1]) for grid in grids), strict=True))
    least = float(cost.removed(fullest, budget.of, part.modality))
    most = float(cost.removed(fewest, budget.of, part.modality))
    for modality in {site.modality: None for site in part.sites}:
        units = cost.prunable(budget.of, modality)
        low = cost.removed(fullest, budget.of, modality)
        high = cost.removed(fewest, budget.of, modality)
        floor, ceiling = budget.floor.get(modality, 0.0) * units, budget.ceiling.get(modality, 1.0) * units
        lower, upper = max(low, floor), min(high, ceiling)
        if lower > upper * (1 + 1e-9):
            raise ValueError(
                f"search.floor and search.ceiling contradict each other for modality {modality!r}: at least "
                f"{lower / units:.4g} of its {budget.of} has to go, but at most {upper / units:.4g} can; loosen one of "
                "them (at least one unit per site stays)"
            )
        least, most = least + max(floor - low, 0.0), most - max(high - ceiling, 0.0)
    return least, most


def check_reach(budget: Budget, part: Part, cost: Cost) -> None:
    """Refuse a target that is out of reach.

    Raises:
        ValueError: If it is so; the message names the constraint that binds.
    """
    least, most = reach(budget, part, cost)
    slack = budget.tolerance * part.target
    if least - slack <= part.target <= most + slack:
        return
    base = budget.base(cost) if part.modality is None else cost.prunable(budget.of, part.modality)
    scope = budget.scope if part.modality is None else f"prunable {part.modality}"
    raise ValueError(
        f"the budget asks to remove {part.target:,.0f} {budget.of} ({part.target / base:.4g} of the {scope} "
        f"{budget.of}), but between {least:,.0f} and {most:,.0f} ({least / base:.4g} to {most / base:.4g}) can go; "
        f"{_binding(budget, part, cost, upper=part.target > most)}"
    )


def _binding(budget: Budget, part: Part, cost: Cost, upper: bool) -> str:
    """What holds the target back, by key, and what to do."""
    loosened: dict[str, Budget] = {}
    for what in ("ceiling",) if upper else ("floor",):
        limits: Mapping[str, float] = getattr(budget, what)
        for key, value in limits.items():
            rest = {other: limits[other] for other in limits if other != key}
            loosened[f"search.{what}[{key!r}] = {value!r}"] = (
                replace(budget, ceiling=rest) if upper else replace(budget, floor=rest)
            )
    for kind, multiple in budget.multiple_of.items() if upper else ():
        others: dict[Kind, int] = {other: size for other, size in budget.multiple_of.items() if other != kind}
        loosened[f"search.multiple_of[{kind!r}] = {multiple!r}"] = replace(budget, multiple_of=others)
    side = int(upper)
    now = reach(budget, part, cost)[side]
    # Two that hold the same units bind together, though loosening one of them changes nothing.
    binding = [name for name, other in loosened.items() if reach(other, part, cost)[side] != now] or list(loosened)
    if binding:
        verb, them = ("bind", "them") if len(binding) > 1 else ("binds", "it")
        return f"{' and '.join(binding)} {verb}: loosen {them}, or change search.removed"
    return "at least one unit per site stays, and what is no unit cannot go: lower search.removed, or add unit kinds"
