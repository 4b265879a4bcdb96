"""Multiples that suit a device, and what keeping to them costs.

Kernels work in tiles: 8 head-dim positions or neurons of 16 bits fill a vector of the matrix units of a GPU, and 64
neurons a tile; the vector units of a CPU take 16 numbers of fp32. A site that keeps 37 units may be slower than one
that keeps 40. So ``multiple_of: auto`` lets the sites keep multiples only, and the rule for small models is: a multiple
is halved until each site of its kind has at least :data:`LEAST_SIZES` sizes to choose from, and again while the budget
cannot be met within its tolerance. Multiples that a user gives are never changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from upop.search.budget import Budget, Cost, check, select
from upop.structure import Kind, Site

AUTO = "auto"
CPU: Mapping[Kind, int] = {"head_dim": 8, "neuron": 16}
TENSOR_CORES: Mapping[Kind, int] = {"head_dim": 8, "neuron": 64}
LEAST_SIZES = 4


def device_multiples(device: str, sites: Sequence[Site]) -> dict[Kind, int]:
    """The multiples that suit a device, by kind, as far as the sites are large enough; a kind left out keeps any.

    Whole heads are left out: the size of each is what counts.

    Args:
        device: Type of the device: ``cpu``, or anything else for one with matrix units.
        sites: Sites to cut.
    """
    found: dict[Kind, int] = {}
    for kind, multiple in (CPU if device == "cpu" else TENSOR_CORES).items():
        fewest = min((site.units for site in sites if site.kind == kind), default=0)
        while multiple > 1 and multiple * LEAST_SIZES > fewest:
            multiple //= 2
        if multiple > 1:
            found[kind] = multiple
    return found


def finer(multiples: Mapping[Kind, int]) -> Iterator[dict[Kind, int]]:
    """Ever finer multiples, each half of those before, down to none."""
    now = dict(multiples)
    while now:
        now = {kind: multiple // 2 for kind, multiple in now.items() if multiple > 3}
        yield now


def align(budget: Budget, sites: Sequence[Site], cost: Cost, device: str) -> Budget:
    """A budget with the coarsest multiples that suit the device and with which it can be met.

    Args:
        budget: Budget without multiples.
        sites: Sites that the search may cut.
        cost: Cost of their units.
        device: Type of the device.

    Raises:
        ValueError: If the budget cannot be met without multiples either; as :func:`~upop.search.budget.check`.
    """
    wanted = device_multiples(device, sites)
    for multiples in (wanted, *finer(wanted)):
        aligned = replace(budget, multiple_of=multiples)
        try:
            check(aligned, sites, cost)
        except ValueError:
            if not multiples:
                raise
        else:
            break
    return aligned


def select_aligned(
    priorities: Mapping[str, Tensor], sites: Sequence[Site], cost: Cost, budget: Budget, share: float
) -> tuple[dict[str, tuple[int, ...]], Budget]:
    """As :func:`~upop.search.budget.select`, with finer multiples where those of the budget miss its target.

    Returns:
        Unit numbers to keep by site name, and the budget with the multiples that they keep to.

    Raises:
        ValueError: If the target is missed without multiples too.
    """
    for multiples in (budget.multiple_of, *finer(budget.multiple_of)):
        tried = replace(budget, multiple_of=multiples)
        try:
            keep = select(priorities, sites, cost, tried, share)
        except ValueError:
            if not multiples:
                raise
        else:
            break
    return keep, tried


@dataclass(frozen=True)
class Price:
    """What multiples cost against the plan without them, for the same priorities and budget.

    Attributes:
        multiple_of: The multiples, by kind.
        removed: Units that go.
        others: Of these, units that would stay without the multiples.
        lost: Fraction of the kept units' summed priority that is lost; ``None`` where that sum is not above 0.
    """

    multiple_of: Mapping[Kind, int]
    removed: int
    others: int
    lost: float | None

    def line(self) -> str:
        """The price in one line.

        >>> Price({"head_dim": 8, "neuron": 16}, 200, 5, 0.0123).line()
        'aligned to head_dim 8, neuron 16: 2.5 % of the units that go would stay without it, kept priority 1.23 % lower'
        """
        kinds = ", ".join(f"{kind} {multiple}" for kind, multiple in self.multiple_of.items())
        share = 100 * self.others / max(self.removed, 1)
        text = f"aligned to {kinds}: {share:.1f} % of the units that go would stay without it"
        if self.lost is None:
            return text
        return f"{text}, kept priority {100 * abs(self.lost):.2f} % {'higher' if self.lost < 0 else 'lower'}"


def price(
    priorities: Mapping[str, Tensor],
    keep: Mapping[str, Sequence[int]],
    sites: Sequence[Site],
    cost: Cost,
    budget: Budget,
) -> Price | None:
    """What the multiples of a finished plan cost; ``None`` where it has none, or no plan without them meets the budget.

    Args:
        priorities: Priority of each unit by site name, ``(U,)``, that the plan was selected with.
        keep: Unit numbers that the plan keeps, by site name.
        sites: Sites that were cut.
        cost: Cost of their units.
        budget: The budget that it was selected with.
    """
    if not budget.multiple_of:
        return None
    try:
        free = select(priorities, sites, cost, replace(budget, multiple_of={}))
    except ValueError:
        return None
    removed = sum(site.units - len(keep[site.name]) for site in sites)
    others = sum(len(set(free[site.name]) - set(keep[site.name])) for site in sites)
    best, held = (
        sum(float(priorities[name][list(units)].sum()) for name, units in chosen.items()) for chosen in (free, keep)
    )
    return Price(dict(budget.multiple_of), removed, others, 1 - held / best if best > 0 else None)
