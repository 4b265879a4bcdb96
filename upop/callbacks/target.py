"""What a search takes from which sites: the budget, the multiples that fit it, and what a selection removes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import Tensor

from upop.callbacks.fractions import removed_fractions
from upop.cost import CostModel, LatencyTable
from upop.search import AUTO, Budget, Price, align, check, device_multiples, price, select, select_aligned
from upop.structure import Currency, Kind, Plan, Site


class Target:
    """The budget of a search, bound to the sites and costs of a model.

    Args:
        removed: Fraction to remove; 0.5 where neither it nor ``fractions`` are given.
        of: As the others, of :class:`~upop.callbacks.ProgressiveSearch`.
        scope: What ``removed`` is a fraction of.
        multiple_of: Multiple by kind, ``auto`` or none.
        floor: At least this fraction is removed, by modality or glob.
        ceiling: At most this fraction is removed, by modality or glob.
        allocation: How the budget is shared out.
        fractions: Fraction to remove by modality.
        tolerance: How far the finished plan may be from the target.

    Attributes:
        budget: The budget, without multiples where they are ``auto`` and not chosen yet.
        auto: Whether its multiples follow from the device.
        sites: What is searched; empty before :meth:`bind`.
        cost: Cost of any plan for them.

    Raises:
        ValueError: If a setting is out of range.
    """

    cost: CostModel

    def __init__(
        self,
        removed: float | None,
        of: Currency,
        scope: Literal["prunable", "model"],
        multiple_of: dict[str, int] | str | None,
        floor: dict[str, float] | None,
        ceiling: dict[str, float] | None,
        allocation: Literal["unified", "per_modality", "uniform"],
        fractions: dict[str, float] | None,
        tolerance: float,
    ) -> None:
        if isinstance(multiple_of, str) and multiple_of != AUTO:
            raise ValueError(
                f"search.multiple_of is {multiple_of!r}; give 'auto', or a multiple by kind, such as "
                "{head_dim: 8, neuron: 64}"
            )
        self.auto = multiple_of == AUTO
        self.budget = Budget(
            0.5 if removed is None and not fractions else removed,
            of,
            scope,
            {} if isinstance(multiple_of, str) else dict(multiple_of or {}),  # type: ignore[arg-type]  # it checks them
            dict(floor or {}),
            dict(ceiling or {}),
            allocation,
            dict(fractions or {}),
            tolerance,
        )
        self.sites: tuple[Site, ...] = ()
        self._device = "cpu"

    def multiples(self, sites: Sequence[Site], device: str) -> dict[Kind, int]:
        """Multiples that the search starts from, by kind; see :meth:`ProgressiveSearch.multiples`."""
        return device_multiples(device, sites) if self.auto else dict(self.budget.multiple_of)

    def bind(self, sites: Sequence[Site], cost: CostModel, device: str) -> None:
        """Take the sites and their cost; rank 0 alone has to know latencies.

        Raises:
            ValueError: If the budget cannot be met with these sites.
        """
        self.sites, self.cost, self._device = tuple(sites), cost, device
        if self.budget.of in cost.currencies or rank_zero_only.rank == 0:
            self._fix_budget()

    def _fix_budget(self) -> None:
        """Choose multiples where they are ``auto``, and refuse a budget that cannot be met."""
        if not self.auto:
            check(self.budget, self.sites, self.cost)
            return
        self.budget = align(replace(self.budget, multiple_of={}), self.sites, self.cost, self._device)

    def agree(self, broadcast: Callable[[Any], Any]) -> None:
        """Let all ranks select by the latencies of rank 0, and say which multiples ``auto`` has come to.

        Args:
            broadcast: Gives every rank the value of rank 0.
        """
        if self.budget.of == "latency":
            own = self.cost.latency.to_dict() if self.cost.latency else None
            shared = broadcast(own)
            if shared != own:
                self.cost = self.cost.with_latency(LatencyTable.from_dict(shared))
                self._fix_budget()
        wanted = self.multiples(self.sites, self._device)
        if self.budget.multiple_of != wanted:
            rank_zero_info(
                f"search.multiple_of: {wanted} is too coarse for search.tolerance {self.budget.tolerance:g}; "
                f"{dict(self.budget.multiple_of) or 'none'} will do"
            )

    def latency(self) -> str | None:
        """A checksum of the latencies that are selected by, as their file holds them; ``None`` where there are none."""
        if self.budget.of != "latency" or not self.cost.latency:
            return None
        return hashlib.sha256(json.dumps(self.cost.latency.to_dict(), sort_keys=True).encode()).hexdigest()

    def select(self, ranked: Mapping[str, Tensor], share: float) -> dict[str, tuple[int, ...]]:
        """The units to keep; ``auto`` may give up multiples with which the finished plan would miss its target.

        Args:
            ranked: Priority of each unit, ``(U,)`` by site name.
            share: Share of the target that is removed now.
        """
        if not self.auto:
            return select(ranked, self.sites, self.cost, self.budget, share)
        keep, self.budget = select_aligned(ranked, self.sites, self.cost, self.budget, share)
        return keep

    def price(self, ranked: Mapping[str, Tensor], keep: Mapping[str, Sequence[int]]) -> Price | None:
        """What the multiples of a finished plan cost; see :func:`upop.search.price`."""
        return price(ranked, keep, self.sites, self.cost, self.budget)

    def progress(self, plan: Plan | None) -> dict[str, float]:
        """Fractions of the prunable cost that are selected to go, in all and per modality and kind."""
        return removed_fractions(self.cost.shares(plan.kept() if plan else {}))

    def told(self, plan: Plan) -> str:
        """How much a plan removes, in words."""
        of = {"params": "parameters", "flops": "FLOPs"}.get(self.budget.of, "latency")
        return f"{self.progress(plan)[f'removed/{self.budget.of}']:.1%} of the prunable {of}"

    def facts(self, keep: Mapping[str, Sequence[int]], price: Price | None) -> dict[str, Any]:
        """What a plan tells of multiples and costs."""
        kept = {name: len(units) for name, units in keep.items()}
        return {
            **({"multiple_of": dict(self.budget.multiple_of)} if self.budget.multiple_of else {}),
            **({"alignment": asdict(price)} if price else {}),
            **{
                currency: {"dense": self.cost.whole(currency), "left": self.cost.remaining(kept, currency)}
                for currency in self.cost.currencies
            },
        }


def returned(before: Plan | None, keep: Mapping[str, Sequence[int]]) -> int:
    """Number of units that were selected to go at the update before and are whole again."""
    if before is None:
        return 0
    return sum(len(set(units).difference(before.keep[name])) for name, units in keep.items())
