"""One list of units, worst first: how much of it has to go for a cost to be met by the *finished* plan.

A *step* is the place of a site in the ascending list of counts of units that it may keep (:mod:`upop.search.bounds`),
so one step more or less is one unit, or one multiple. A *length* is a number of units from the start of the list. Every
cost is that of the plan after rounding, floors and ceilings, never an estimate from the units' own costs.

Shapes: ``N`` units in the list, ``S`` sites, ``U`` units of a site, ``G`` counts that it may keep.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Steps = NDArray[np.int64]
Removed = Callable[[Steps], float]

# Moves of a refinement, and pairs of moves tried at each: far more than is needed, so that no list can hang it.
ROUNDS = 64
PAIRS = 16
# Slack for float noise in a limit, relative.
NOISE = 1e-9


class Ranking:
    """The units of some sites in one list, ascending by priority; ties go by site order, then unit number.

    Args:
        priorities: Priority of each unit by site name, ``(U,)``, in site order.
        grids: Numbers of units that a site may keep by site name, ``(G,)``, ascending, not empty.
    """

    def __init__(self, priorities: Mapping[str, NDArray[np.float64]], grids: Mapping[str, NDArray[np.int64]]) -> None:
        self.names = list(priorities)
        self.grids = [grids[name] for name in self.names]
        order = np.argsort(np.concatenate(list(priorities.values())), kind="stable")
        turns = np.empty(len(order), dtype=np.int64)
        turns[order] = np.arange(len(order))
        ends = np.cumsum([len(value) for value in priorities.values()])
        own = np.split(turns, ends[:-1])
        self._units = [np.argsort(turn) for turn in own]
        self._turns = [turn[units] for turn, units in zip(own, self._units, strict=True)]

    def __len__(self) -> int:
        """Number of units in the list, ``N``."""
        return sum(len(turn) for turn in self._turns)

    def steps(self, lengths: Sequence[int] | NDArray[np.int64]) -> Steps:
        """Step of each site, ``(S,)``, once site ``s`` has lost its own of the first ``lengths[s]`` units."""
        found = np.empty(len(self.names), dtype=np.int64)
        for place, (turn, grid, length) in enumerate(zip(self._turns, self.grids, lengths, strict=True)):
            left = len(turn) - turn.searchsorted(length)
            found[place] = min(int(grid.searchsorted(left)), len(grid) - 1)
        return found

    def kept(self, steps: Steps) -> dict[str, int]:
        """Number of units kept at each site."""
        return {name: int(grid[step]) for name, grid, step in zip(self.names, self.grids, steps, strict=True)}

    def keep(self, steps: Steps) -> dict[str, tuple[int, ...]]:
        """Unit numbers kept at each site, ascending: the best of the site."""
        chosen = {}
        for name, units, grid, step in zip(self.names, self._units, self.grids, steps, strict=True):
            chosen[name] = tuple(np.sort(units[len(units) - grid[step] :]).tolist())
        return chosen

    def moves(self, steps: Steps, by: int) -> list[Steps]:
        """Every plan that is one step away, by priority of the unit that moves.

        Args:
            steps: The plan to start from, ``(S,)``.
            by: -1 to remove (the worst kept unit first), 1 to bring back (the best removed unit first).
        """
        found = []
        for place, (turn, grid, step) in enumerate(zip(self._turns, self.grids, steps, strict=True)):
            if 0 <= step + by < len(grid):
                first = len(turn) - int(grid[step]) - (by > 0)
                moved = steps.copy()
                moved[place] += by
                found.append((int(turn[first]) * -by, moved))
        return [moved for _, moved in sorted(found, key=lambda pair: pair[0])]


@dataclass(frozen=True)
class Limit:
    """What a part of the sites may lose.

    Attributes:
        here: Which sites belong to the part, ``(S,)``, bool.
        removed: Cost that a plan removes from the part; it falls with every step.
        least: At least this much; 0 for no bound.
        most: At most this much; infinity for no bound.
    """

    here: NDArray[np.bool_]
    removed: Removed
    least: float
    most: float

    def holds(self, steps: Steps) -> bool:
        """Whether the plan keeps within the limit, up to float noise."""
        return self.least * (1 - NOISE) <= self.removed(steps) <= self.most * (1 + NOISE)

    def lengths(self, ranking: Ranking) -> tuple[int, int]:
        """The shortest and the longest list with which the part is within the limit, each for its own side."""

        def removed(length: int) -> float:
            return self.removed(ranking.steps([length] * len(ranking.names)))

        shortest, longest = 0, len(ranking)
        if self.least > 0:
            shortest = _first(lambda length: removed(length) >= self.least * (1 - NOISE), len(ranking))
        if self.most < math.inf:
            longest = _first(lambda length: removed(length) > self.most * (1 + NOISE), len(ranking)) - 1
        return shortest, longest


def nearest(ranking: Ranking, removed: Removed, target: float, limits: Sequence[Limit] = ()) -> Steps:
    """The plan nearest to the target among those that remove a prefix of the list.

    Bisects over the length, which is held, for the sites of a limit, between what the limit allows; where no length is
    within a limit, the upper side holds.

    Args:
        ranking: The list.
        removed: Cost that a plan removes; it falls with every step.
        target: Cost to remove.
        limits: Limits on parts of the sites, which do not overlap.

    Returns:
        Step of each site, ``(S,)``.
    """
    lower, upper = np.zeros(len(ranking.names), dtype=np.int64), np.full(len(ranking.names), len(ranking))
    for limit in limits:
        lower[limit.here], upper[limit.here] = limit.lengths(ranking)

    def at(length: int) -> Steps:
        return ranking.steps(np.minimum(np.maximum(length, lower), upper))

    length = min(_first(lambda length: removed(at(length)) >= target, len(ranking)), len(ranking))
    above, below = at(length), at(max(length - 1, 0))
    return above if removed(above) - target < target - removed(below) else below


def refine(
    ranking: Ranking, steps: Steps, removed: Removed, target: float, tolerance: float, limits: Sequence[Limit] = ()
) -> Steps:
    """Bring a plan nearer to the target, one step of one site at a time, until it is within the tolerance.

    Where no single step helps, one site removes a step while another brings one back.

    Args:
        ranking: The list.
        steps: The plan to start from, ``(S,)``.
        removed: Cost that a plan removes; it falls with every step.
        target: Cost to remove.
        tolerance: Distance to the target that is near enough, in the same currency.
        limits: Limits on parts of the sites, which no move may break.

    Returns:
        Step of each site, ``(S,)``.
    """
    error = removed(steps) - target
    for _ in range(ROUNDS):
        if abs(error) <= tolerance:
            break
        options = ranking.moves(steps, 1 if error > 0 else -1)
        better = _best(options, removed, target, error, tolerance, limits)
        if better is None:
            better = _best(_pairs(ranking, steps, removed, error), removed, target, error, tolerance, limits)
        if better is None:
            break
        steps, error = better
    return steps


def smallest_step(ranking: Ranking, steps: Steps, removed: Removed) -> tuple[str, float] | None:
    """The site whose next step, either way, changes the cost least, and by how much; None where no site can move."""
    now = removed(steps)
    options = [*ranking.moves(steps, -1), *ranking.moves(steps, 1)]
    if not options:
        return None
    size, option = min(((abs(removed(option) - now), option) for option in options), key=lambda pair: pair[0])
    return ranking.names[int(np.flatnonzero(option != steps)[0])], size


def _first(reached: Callable[[int], bool], longest: int) -> int:
    """The smallest length at which ``reached``, which stays true once it is, holds; ``longest + 1`` if none."""
    return bisect.bisect_left(range(longest + 1), True, key=reached)


def _best(
    options: Sequence[Steps],
    removed: Removed,
    target: float,
    error: float,
    tolerance: float,
    limits: Sequence[Limit],
) -> tuple[Steps, float] | None:
    """The nearest of some plans, and its error, if it is nearer than ``error`` and breaks no limit.

    All that are within the tolerance are equally good: then the first holds.
    """
    errors = [removed(option) - target for option in options]
    for place in sorted(range(len(options)), key=lambda place: max(abs(errors[place]), tolerance)):
        if abs(errors[place]) >= abs(error):
            break
        if all(limit.holds(options[place]) for limit in limits):
            return options[place], errors[place]
    return None


def _pairs(ranking: Ranking, steps: Steps, removed: Removed, error: float) -> list[Steps]:
    """Plans that remove a step at one site and bring one back at another, the most promising few.

    They are found by adding the two sites' own changes, which is exact unless they share a block.
    """
    now = removed(steps)
    down, up = ranking.moves(steps, -1), ranking.moves(steps, 1)
    less = np.array([removed(option) - now for option in down]).reshape(-1, 1)
    more = np.array([removed(option) - now for option in up]).reshape(1, -1)
    order = np.argsort(np.abs(error + less + more), axis=None, kind="stable")
    found: list[Steps] = []
    for place in order[: 4 * PAIRS].tolist():
        one, other = down[place // len(up)], up[place % len(up)]
        both = one + other - steps
        if not np.array_equal(both, steps) and len(found) < PAIRS:
            found.append(both)
    return found
