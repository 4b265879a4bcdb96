"""What goes wrong in a search without being infinite: a loss that explodes, a modality that is about to vanish.

Both are judged by what the search has noted at its updates, which is the same on all ranks, so they cost nothing at a
step and end a run on all ranks alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from upop.callbacks.guards import Guards
from upop.callbacks.progressive_search import ProgressiveSearch
from upop.callbacks.target import Target
from upop.search import check
from upop.structure import Site

LEAST_STEPS = 10
"""Optimizer steps that a mean loss is taken over at least."""


@dataclass
class Explosion:
    """Whether the loss has exploded: whether its mean exceeds ``factor * (best + 1)``, twice in a row.

    Attributes:
        factor: The factor.
        best: Lowest mean so far.
        above: Means in a row, up to the last, that exceed it.
        total: Sum of the losses of the steps since the last mean.
        steps: Number of these steps.
        since: Optimizer steps taken at the last update.
        mean: The last mean.
    """

    factor: float
    best: float = float("inf")
    above: int = 0
    total: float = 0.0
    steps: float = 0.0
    since: float = 0.0
    mean: float = 0.0

    def judge(self, step: float, loss: float) -> bool:
        """Take the mean loss since the update before; whether that makes another mean.

        Args:
            step: Optimizer steps taken, at this update.
            loss: Mean loss since the update before.
        """
        self.total, self.steps = self.total + loss * (step - self.since), self.steps + step - self.since
        self.since = step
        if self.steps < LEAST_STEPS:
            return False
        self.mean = self.total / self.steps
        self.above = self.above + 1 if self.mean > self.factor * (self.best + 1) else 0
        self.best = min(self.best, self.mean)
        self.total = self.steps = 0.0
        return True


@dataclass(frozen=True)
class Vanishing:
    """A part of the model of which hardly anything is selected to stay.

    Attributes:
        part: Modality, or modality and kind, as ``vision/neuron``.
        kept: Fraction of its prunable cost that stays, in the currency of the budget.
        most: The largest such fraction of another part.
    """

    part: str
    kept: float
    most: float

    def line(self, of: str) -> str:
        """It in words.

        >>> Vanishing("vision/neuron", 0.031, 0.5).line("params")
        '3.1 % of the prunable params of vision neuron units, while another part keeps 50.0 %'
        """
        name = " ".join(self.part.replace("+", " x ").split("/", 1)) + " units" if "/" in self.part else self.part
        return (
            f"{100 * self.kept:.1f} % of the prunable {of} of {name}, while another part keeps {100 * self.most:.1f} %"
        )


def vanishing(
    removed: Mapping[str, float], of: str, least: float, sites: Sequence[Site], kept: Mapping[str, int]
) -> list[Vanishing]:
    """The parts that vanish: modalities first, then kinds of units of those modalities that do not vanish whole.

    A part vanishes where it keeps less than ``least``, or one unit at each site, and another of its level, with more
    than that at some site, keeps more than twice as much.

    Args:
        removed: Fractions removed by part, as :func:`~upop.callbacks.fractions.removed_fractions` names them.
        of: Currency of the budget.
        least: Fraction that is to stay.
        sites: What is searched.
        kept: Units that stay, by site name.
    """
    shares = {name.split("/", 2)[2]: 1.0 - gone for name, gone in removed.items() if name.startswith(f"removed/{of}/")}
    found: list[Vanishing] = []
    for depth in (0, 1):
        level = {part: share for part, share in shares.items() if part.count("/") == depth}
        bare = {part for part in level if all(kept.get(site.name, site.units) == 1 for site in part_of(part, sites))}
        for part, share in level.items():
            most = max((other for name, other in level.items() if name != part and name not in bare), default=0.0)
            gone = any(part.startswith(f"{one.part}/") for one in found)
            if not gone and (share < least or part in bare) and most > 2 * share:
                found.append(Vanishing(part, share, most))
    return found


def part_of(part: str, sites: Sequence[Site]) -> list[Site]:
    """The sites of a modality, or of a modality and the kinds of one block, as ``vision`` or ``vision/head+neuron``."""
    modality, _, kinds = part.partition("/")
    blocks: dict[str, list[Site]] = {}
    for site in sites:
        blocks.setdefault(site.block, []).append(site)
    mine = [block for block in blocks.values() if block[0].modality == modality]
    return [site for block in mine if not kinds or "+".join(one.kind for one in block) == kinds for site in block]


def remedy(part: str, kept: float, least: float, target: Target) -> str:
    """The setting under which a part does not vanish and the budget can be met, or what else to do.

    Args:
        part: The part.
        kept: Fraction of its prunable cost that stays.
        least: Fraction that is to stay.
        target: What the search removes.
    """
    budget, sites = target.budget, part_of(part, target.sites)
    kinds = part.count("+") + 1  # heads and head-dims multiply
    patterns = dict.fromkeys(re.sub(r"\.\d+(?=\.)", ".*", site.name) for site in sites)
    for wanted in (2 * max(kept, least), 1.5 * max(kept, least)):
        most = int(100 * (1.0 - wanted ** (1 / kinds))) / 100
        own = dict.fromkeys(patterns, most) if "/" in part else {part: most}
        ceiling = dict(budget.ceiling) | own
        try:
            check(replace(budget, ceiling=ceiling), target.sites, target.cost)
        except ValueError:
            continue
        return f"search.ceiling: {json.dumps(ceiling)} prevents it"
    return "no ceiling on it leaves the budget within reach; lower search.removed, search.floor or search.fractions"


class SearchWatch(Callback):
    """Warns, once each, of a loss that explodes and of modalities that vanish in a search; ends it where asked to.

    Args:
        guards: When.
        search: The search to watch; it has to come before this callback.
    """

    def __init__(self, guards: Guards, search: ProgressiveSearch) -> None:
        self.guards, self._search = guards, search
        self._explosion = Explosion(guards.explode)
        self._seen = 0
        self._warned: list[str] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:  # noqa: ANN401 (Lightning's own)
        """Judge an update that the search has just made."""
        rows = self._search.history
        if len(rows) == self._seen:
            return
        self._seen = len(rows)
        if self.guards.explode and "loss" in rows[-1] and self._explosion.judge(rows[-1]["step"], rows[-1]["loss"]):
            self._judge_loss(int(rows[-1]["step"]))
        for one in self._vanishing():
            if one.part not in self._warned:
                self._warned.append(one.part)
                rank_zero_warn(f"search: after step {int(rows[-1]['step'])} the selection keeps {self._told(one)}")

    def _judge_loss(self, step: int) -> None:
        """Warn of a loss that has just exploded; end the run where it has stayed so for long enough."""
        found = self._explosion
        if found.above < 2:
            return
        advice = "lower search.lr, raise search.warmup_steps, or fade the units over more search.epochs"
        told = f"at step {step} its mean is {found.mean:.4g}, at its best it was {found.best:.4g}"
        if 0 < self.guards.stop_exploded <= found.above:
            raise ValueError(
                f"search: the loss has exploded and stays so for {found.above} updates (guards.stop_exploded): {told}; "
                f"{advice}, in another run_dir"
            )
        if "loss" not in self._warned:
            self._warned.append("loss")
            rank_zero_warn(f"search: the loss has exploded: {told}; {advice}")

    def _vanishing(self) -> list[Vanishing]:
        """The parts that vanish by the last update."""
        search, target = self._search, self._search.target
        if not self.guards.vanish or search.plan is None or not search.history:
            return []
        kept = search.plan.kept()
        return vanishing(search.history[-1], target.budget.of, self.guards.vanish, target.sites, kept)

    def _told(self, one: Vanishing) -> str:
        target = self._search.target
        return f"{one.line(target.budget.of)}; {remedy(one.part, one.kept, self.guards.vanish, target)}"

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what has vanished in the finished plan."""
        if self._search.finished:
            for one in self._vanishing():
                rank_zero_info(f"the plan keeps {self._told(one)}")

    def state_dict(self) -> dict[str, Any]:
        """What was seen and said, for a checkpoint."""
        return {"explosion": vars(self._explosion).copy(), "seen": self._seen, "warned": list(self._warned)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` gave; the factor stays the one that was asked for."""
        self._explosion = Explosion(**state_dict["explosion"] | {"factor": self.guards.explode})
        self._seen, self._warned = state_dict["seen"], list(state_dict["warned"])
