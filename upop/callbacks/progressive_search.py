"""The search as a Lightning callback: it owns *when*; the policy owns *which*.

Source: UPop, Shi et al., ICML 2023, https://arxiv.org/abs/2301.13741, section 3 and algorithm 1. We deviate: scores
accumulate in fp32 over the whole search under every precision (the authors' mixed precision keeps one mini-batch),
costs are exact, and a step that is not finite is left out, counted and logged (:mod:`upop.callbacks.guards`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from upop.callbacks.guards import StepGuard, scale
from upop.callbacks.losses import MeanLoss
from upop.callbacks.target import Target, returned
from upop.cost import CostModel, LatencySettings
from upop.masks import Masks, check_same, mask_values, unit_norms
from upop.search import Budget, Price, create, fraction, priorities
from upop.structure import Currency, Kind, Plan, Site

LATENCY = LatencySettings()


class ProgressiveSearch(Callback):
    """Learn which units a task can spare while it trains, and fade them out.

    Args:
        removed: Fraction to remove by the end of the search, between 0 and 1, of ``of`` within ``scope``. Left out, it
            is 0.5, or what ``fractions`` say per modality.
        of: Currency of the budget: ``params``, ``flops``, or ``latency``, for which parts of the model are timed at
            several sizes before the search; see ``latency``.
        scope: What ``removed`` is a fraction of: ``prunable`` (attention and MLP units) or the whole ``model``.
        units: Kinds of units to remove: ``head``, ``head_dim`` (the paper's: one position in all heads of a layer),
            ``neuron``; several may be searched together.
        policy: What a unit is worth: ``unified`` (the paper's: accumulated signed mask gradients), ``taylor``,
            ``magnitude`` or ``random``.
        schedule: How the removed fraction rises over the steps: ``sine`` (the paper's), ``cubic`` or ``one_shot``.
        interval: Optimizer steps between two mask updates. The authors advise as many as remove about 1 %.
        settle: Fraction of the search after which the order of the units stands still: the selection goes on growing
            by it, but no unit is exchanged any more, so that each has faded over many steps when it is cut. 1.0 (the
            paper's) ranks anew until the end, and a unit chosen at the last update is cut nearly whole.
        allocation: ``unified`` ranks all units in one list; ``per_modality`` gives each tower its own fraction;
            ``uniform`` removes about the same share of every site.
        fractions: Fraction to remove per modality, for ``per_modality``.
        floor: At least this fraction is removed, by modality or by a glob over site names.
        ceiling: At most this fraction is removed, by modality or by a glob over site names.
        multiple_of: Kept units per site are a multiple of this, by kind, such as ``{head_dim: 8, neuron: 64}``, or
            ``auto``: 8 head-dims and 64 neurons, on a CPU 16, halved for small sites and where the budget could not be
            met within its tolerance. What that costs in priority is said at the end. By default, any number.
        latency: What ``of: latency`` measures: batch size, dtype and device that the finished model will run with.
        tolerance: How far the finished plan may be from the target, as a fraction of the target.
        seed: Seed of the ``random`` policy; by default the run's own.
    """

    def __init__(
        self,
        removed: float | None = None,
        of: Currency = "params",
        scope: Literal["prunable", "model"] = "prunable",
        units: Sequence[Kind] = ("head_dim", "neuron"),
        policy: str = "unified",
        schedule: Literal["sine", "cubic", "one_shot"] = "sine",
        interval: int = 50,
        settle: float = 1.0,
        allocation: Literal["unified", "per_modality", "uniform"] = "unified",
        fractions: dict[str, float] | None = None,
        floor: dict[str, float] | None = None,
        ceiling: dict[str, float] | None = None,
        multiple_of: dict[str, int] | str | None = None,
        latency: LatencySettings = LATENCY,
        tolerance: float = 0.005,
        seed: int | None = None,
    ) -> None:
        if interval < 1:
            raise ValueError(
                f"search.interval is {interval!r}; give the optimizer steps between two updates, 1 or more"
            )
        if not 0.0 < settle <= 1.0:
            raise ValueError(f"search.settle is {settle!r}; it is a fraction of the search, above 0 and at most 1")
        self.settle, self.latency = settle, latency
        self.target = Target(removed, of, scope, multiple_of, floor, ceiling, allocation, fractions, tolerance)
        self.units = tuple(units)
        self.policy_name, self.schedule, self.interval, self.seed = policy, schedule, interval, seed or 0
        create(policy, (), self.seed)
        fraction(schedule, 0, 1)
        self.plan: Plan | None = None
        self.left_out = 0
        self.returned = 0
        self.finished = False
        self.price: Price | None = None
        self.history: list[dict[str, float]] = []
        self._losses = MeanLoss()
        self._guard = StepGuard(stop_after=0, phase="search")
        self._masks: Masks | None = None
        self._updated_at = -1
        self._settled: dict[str, Tensor] = {}
        self._restored: dict[str, Any] = {}

    @property
    def budget(self) -> Budget:
        """What the search has to remove; its multiples, where ``auto``, as far as they are known."""
        return self.target.budget

    @property
    def auto(self) -> bool:
        """Whether multiples follow from the device."""
        return self.target.auto

    def multiples(self, sites: Sequence[Site], device: str) -> dict[Kind, int]:
        """Multiples that the search starts from, by kind.

        Args:
            sites: Sites of the task's model.
            device: Type of the device that the finished model will run on.
        """
        return self.target.multiples(sites, device)

    def bind(self, sites: Sequence[Site], cost: CostModel, plan_path: str | Path, device: str = "cpu") -> None:
        """Say what is searched; call it before training.

        In a distributed run rank 0 alone has to know the latencies; the others get them when training starts.

        Args:
            sites: Sites of the task's model, of the kinds in ``units``.
            cost: Cost of any plan for them.
            plan_path: File that the finished plan is written to.
            device: Type of the device that the finished model will run on, for ``multiple_of: auto``.

        Raises:
            ValueError: If the budget cannot be met with these sites.
        """
        self._path = Path(plan_path)
        self._policy = create(self.policy_name, sites, self.seed)
        self.target.bind(sites, cost, device)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach the masks, before a checkpoint is restored and the optimizer is built."""
        if stage != "fit":
            return
        if not self.target.sites:
            raise ValueError("the search knows no sites; call bind(sites, cost, plan_path) before training")
        self.target.agree(trainer.strategy.broadcast)
        self._guard = next((one for one in trainer.callbacks if isinstance(one, StepGuard)), self._guard)
        self._masks = Masks(pl_module.model, self.target.sites)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore what a checkpoint held, or begin; refuse a search that is too short to update."""
        masks = self._attached()
        steps = int(trainer.estimated_stepping_batches)
        if steps < 2:
            raise ValueError(f"the search has {steps} optimizer steps; give it more epochs or smaller batches")
        if self.interval > steps:
            rank_zero_warn(
                f"search.interval is {self.interval}, but the search has {steps} steps: one update, at the end"
            )
        if self._restored:
            self._policy.load_state_dict(self._restored["policy"])
            masks.write_(self._restored["masks"])
            self._restored = {}
        masks.clear()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: object) -> None:
        """Collect the mask gradients of this step: unscaled, averaged over ranks; of a step that is left out, none.

        Gradient clipping comes later and does not touch them; accumulated micro-batches are averaged already.
        """
        masks = self._attached()
        gradients = masks.gradients()
        masks.clear()
        flat = torch.cat([gradient.float() for gradient in gradients.values()])
        verdict = self._guard.check(trainer, pl_module, flat)
        self.left_out += verdict == "left out"
        if verdict != "fine" or not self._policy.needs_gradients:
            return
        flat = flat / scale(trainer)
        if trainer.world_size > 1:
            flat = trainer.strategy.reduce(flat, reduce_op="mean")
        parts = flat.split([gradient.numel() for gradient in gradients.values()])
        self._policy.collect(dict(zip(gradients, parts, strict=True)), masks.values())

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401 (whatever the task's step returns)
        batch: Any,  # noqa: ANN401 (whatever the data give)
        batch_idx: int,
    ) -> None:
        """Update the masks every ``interval`` optimizer steps and at the last one."""
        self._losses.add(outputs, trainer.accumulate_grad_batches)
        done, steps = trainer.global_step, int(trainer.estimated_stepping_batches)
        if done == self._updated_at or done == 0 or (done % self.interval and done != steps):
            return
        self._updated_at = done
        before = self._attached().fingerprint() if trainer.world_size > 1 else 0
        self.update(pl_module, done - 1, steps)
        if trainer.world_size > 1:  # those that have trained since the last update, and those to come
            own = torch.tensor([before, self._attached().fingerprint()], device=pl_module.device)
            for ranks in pl_module.all_gather(own).t().tolist():
                check_same(ranks, done)
        self.finished = done == steps
        progress = self._progress()
        self.history.append({"step": float(done), **progress, **self._losses.take(trainer, pl_module.device)})
        for logger in trainer.loggers:  # self.log would wait for a multiple of log_every_n_steps
            logger.log_metrics(progress, step=done)

    def update(self, pl_module: LightningModule, step: int, steps: int) -> None:
        """Select the units to fade and write the masks.

        Args:
            pl_module: Task that trains the masked model.
            step: Optimizer step just taken, from 0.
            steps: Optimizer steps of the search.
        """
        share = fraction(self.schedule, step, steps)
        ranked = self._settled or self._priorities(pl_module)
        if self.settle < 1.0 and step + 1 >= self.settle * steps:
            self._settled = ranked
        keep = self.target.select(ranked, share)
        self.price = self.target.price(ranked, keep) if share == 1 else None
        self.returned = returned(self.plan, keep)
        self.plan = Plan.of(keep, self.target.sites, self._facts(keep, step, steps))
        self._attached().write_(mask_values(self.target.sites, self.plan, dropped=1.0 - share))

    def _priorities(self, pl_module: LightningModule) -> dict[str, Tensor]:
        """Priority of each unit by what the policy knows now."""
        sites = self.target.sites
        norms = unit_norms(pl_module.model, sites) if self._policy.needs_norms else None
        return priorities(self._policy.scores(norms), sites, self.budget.allocation)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the finished plan; a search that was stopped early writes none."""
        if self.plan is None or not self.finished:
            rank_zero_warn("the search ended before its last step: no plan written; run it again to go on")
            return
        if trainer.is_global_zero:
            self.plan.save(self._path)
        rank_zero_info(f"plan written to {self._path}: {self.target.told(self.plan)} go")
        if self.price:
            rank_zero_info(self.price.line())

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the masks off."""
        if stage == "fit" and self._masks is not None:
            self._masks.detach()
            self._masks = None

    def state_dict(self) -> dict[str, Any]:
        """Masks, scores and counters, for a checkpoint. Tensors and plain values only."""
        if self._masks is None:
            return {}
        return {
            "policy": self._policy.state_dict(),
            "masks": {name: value.cpu() for name, value in self._masks.values().items()},
            "plan": self.plan.to_dict() if self.plan else None,
            "history": [dict(row) for row in self.history],
            "left_out": self.left_out,
            "updated_at": self._updated_at,
            "settled": dict(self._settled),
            "losses": self._losses.state(),
            "finished": self.finished,
            "latency": self.target.latency(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` gave; masks and scores follow when training starts.

        Raises:
            ValueError: If the search began with another latency table than it has now.
        """
        if not state_dict:
            return
        if state_dict.get("latency") != self.target.latency():
            raise ValueError(
                "latency.json in the directory of the search holds other times than those that this search began with; "
                "put that file back, or delete the run directory to start again"
            )
        self._restored = state_dict
        self.plan = Plan.from_dict(state_dict["plan"]) if state_dict["plan"] else None
        self.left_out, self._updated_at = state_dict["left_out"], state_dict["updated_at"]
        self.finished, self._settled = state_dict["finished"], dict(state_dict["settled"])
        self.history = [dict(row) for row in state_dict["history"]]
        self._losses.restore(state_dict.get("losses", []))

    def _attached(self) -> Masks:
        if self._masks is None:
            raise ValueError("no masks are attached; the search runs inside Trainer.fit")
        return self._masks

    def _progress(self) -> dict[str, float]:
        """Fractions of the prunable cost that are selected, in all and per modality and kind."""
        counts = {"steps_left_out": float(self.left_out), "units_returned": float(self.returned)}
        return self.target.progress(self.plan) | counts

    def _facts(self, keep: Mapping[str, Sequence[int]], step: int, steps: int) -> dict[str, Any]:
        budget = self.budget
        told: dict[str, Any] = {"removed": budget.removed, "of": budget.of, "scope": budget.scope}
        told |= {"policy": self.policy_name, "allocation": budget.allocation, "schedule": self.schedule}
        told |= {"settle": self.settle, "units": list(self.units), "step": step + 1, "steps": steps}
        return told | {"steps_left_out": self.left_out} | self.target.facts(keep, self.price)
