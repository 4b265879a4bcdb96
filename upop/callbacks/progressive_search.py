"""The search as a Lightning callback: it owns *when*; the policy owns *which*.

Source: UPop, Shi et al., ICML 2023, https://arxiv.org/abs/2301.13741, section 3 and algorithm 1. We deviate: scores
accumulate in fp32 over the whole search under every precision (the authors' mixed precision keeps one mini-batch),
costs are exact, and a step whose mask gradients are not finite is left out, counted and logged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from torch import Tensor

from upop.callbacks.fractions import removed_fractions
from upop.cost import CostModel, LatencySettings, LatencyTable
from upop.masks import Masks, mask_values, unit_norms
from upop.search import (
    AUTO,
    Budget,
    Price,
    align,
    check,
    create,
    device_multiples,
    fraction,
    price,
    priorities,
    select,
    select_aligned,
)
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
        if isinstance(multiple_of, str) and multiple_of != AUTO:
            raise ValueError(
                f"search.multiple_of is {multiple_of!r}; give 'auto', or a multiple by kind, such as "
                "{head_dim: 8, neuron: 64}"
            )
        self.settle, self.latency = settle, latency
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
        self._losses: list[Tensor] = []
        self._sites: tuple[Site, ...] = ()
        self._masks: Masks | None = None
        self._updated_at = -1
        self._settled: dict[str, Tensor] = {}
        self._restored: dict[str, Any] = {}

    def multiples(self, sites: Sequence[Site], device: str) -> dict[Kind, int]:
        """Multiples that the search starts from, by kind.

        Args:
            sites: Sites of the task's model.
            device: Type of the device that the finished model will run on.
        """
        return device_multiples(device, sites) if self.auto else dict(self.budget.multiple_of)

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
        self._sites, self._cost, self._path, self._device = tuple(sites), cost, Path(plan_path), device
        self._policy = create(self.policy_name, sites, self.seed)
        if self.budget.of in cost.currencies or rank_zero_only.rank == 0:
            self._fix_budget()

    def _fix_budget(self) -> None:
        """Choose multiples where they are ``auto``, and refuse a budget that cannot be met."""
        if not self.auto:
            check(self.budget, self._sites, self._cost)
            return
        self.budget = align(replace(self.budget, multiple_of={}), self._sites, self._cost, self._device)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach the masks, before a checkpoint is restored and the optimizer is built."""
        if stage != "fit":
            return
        if not self._sites:
            raise ValueError("the search knows no sites; call bind(sites, cost, plan_path) before training")
        if self.budget.of == "latency":  # all ranks select by the numbers of rank 0
            own = self._cost.latency.to_dict() if self._cost.latency else None
            shared = trainer.strategy.broadcast(own)
            if shared != own:
                self._cost = self._cost.with_latency(LatencyTable.from_dict(shared))
                self._fix_budget()
        wanted = self.multiples(self._sites, self._device)
        if self.budget.multiple_of != wanted:
            rank_zero_info(
                f"search.multiple_of: {wanted} is too coarse for search.tolerance {self.budget.tolerance:g}; "
                f"{dict(self.budget.multiple_of) or 'none'} will do"
            )
        self._masks = Masks(pl_module.model, self._sites)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore what a checkpoint held, or begin; refuse a search that is too short to update."""
        masks = self._attached()
        steps = self._steps(trainer)
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
        """Collect the mask gradients of this step: unscaled, averaged over ranks, left out where not finite.

        Gradient clipping comes later and does not touch them; accumulated micro-batches are averaged already.
        """
        masks = self._attached()
        gradients = masks.gradients()
        flat = torch.cat([gradient.float() for gradient in gradients.values()])
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            flat = flat / scaler.get_scale()
        if trainer.world_size > 1:
            flat = trainer.strategy.reduce(flat, reduce_op="mean")
        masks.clear()
        if not bool(torch.isfinite(flat).all()):
            self.left_out += 1
            for parameter in pl_module.parameters():
                parameter.grad = None  # or the optimizer would carry the fault into the weights
            at = f"step {trainer.global_step} ({self.left_out} so far)"
            rank_zero_warn(f"mask gradients are not finite: left out {at}, weights unchanged")
            return
        if self._policy.needs_gradients:
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
        if isinstance(outputs, Mapping) and isinstance(outputs.get("loss"), Tensor):
            # Lightning has divided it
            self._losses.append(outputs["loss"].detach() * trainer.accumulate_grad_batches)
        done, steps = trainer.global_step, self._steps(trainer)
        if done == self._updated_at or done == 0 or (done % self.interval and done != steps):
            return
        self._updated_at = done
        self.update(pl_module, done - 1, steps)
        self.finished = done == steps
        progress = self._progress()
        self.history.append({"step": float(done), **progress, **self._mean_loss()})
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
        keep = self._select(ranked, share)
        self.price = price(ranked, keep, self._sites, self._cost, self.budget) if share == 1 else None
        self.returned = _returned(self.plan, keep)
        self.plan = Plan.of(keep, self._sites, self._facts(keep, step, steps))
        self._attached().write_(mask_values(self._sites, self.plan, dropped=1.0 - share))

    def _select(self, ranked: Mapping[str, Tensor], share: float) -> dict[str, tuple[int, ...]]:
        """The units to keep; ``auto`` may give up multiples with which the finished plan would miss its target."""
        if not self.auto:
            return select(ranked, self._sites, self._cost, self.budget, share)
        keep, self.budget = select_aligned(ranked, self._sites, self._cost, self.budget, share)
        return keep

    def _priorities(self, pl_module: LightningModule) -> dict[str, Tensor]:
        """Priority of each unit by what the policy knows now."""
        norms = unit_norms(pl_module.model, self._sites) if self._policy.needs_norms else None
        return priorities(self._policy.scores(norms), self._sites, self.budget.allocation)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the finished plan; a search that was stopped early writes none."""
        if self.plan is None or not self.finished:
            rank_zero_warn("the search ended before its last step: no plan written; run it again to go on")
            return
        if trainer.is_global_zero:
            self.plan.save(self._path)
        gone, of = self._progress()[f"removed/{self.budget.of}"], {"params": "parameters", "flops": "FLOPs"}
        rank_zero_info(
            f"plan written to {self._path}: {gone:.1%} of the prunable {of.get(self.budget.of, 'latency')} go"
        )
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
            "losses": [loss.cpu() for loss in self._losses],
            "finished": self.finished,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` gave; masks and scores follow when training starts."""
        if not state_dict:
            return
        self._restored = state_dict
        self.plan = Plan.from_dict(state_dict["plan"]) if state_dict["plan"] else None
        self.left_out, self._updated_at = state_dict["left_out"], state_dict["updated_at"]
        self.finished, self._settled = state_dict["finished"], dict(state_dict["settled"])
        self.history = [dict(row) for row in state_dict["history"]]
        self._losses = list(state_dict.get("losses", []))

    def _attached(self) -> Masks:
        if self._masks is None:
            raise ValueError("no masks are attached; the search runs inside Trainer.fit")
        return self._masks

    def _steps(self, trainer: Trainer) -> int:
        """Optimizer steps of the whole search."""
        return int(trainer.estimated_stepping_batches)

    def _progress(self) -> dict[str, float]:
        """Fractions of the prunable cost that are selected, in all and per modality and kind."""
        shares = self._cost.shares(self.plan.kept() if self.plan else {})
        counts = {"steps_left_out": float(self.left_out), "units_returned": float(self.returned)}
        return removed_fractions(shares) | counts

    def _mean_loss(self) -> dict[str, float]:
        """Mean loss of the batches since the last update."""
        losses, self._losses = self._losses, []
        if not losses:
            return {}
        device = losses[-1].device  # those of before a resume lie on the CPU
        return {"loss": float(torch.stack([loss.to(device) for loss in losses]).float().mean())}

    def _facts(self, keep: Mapping[str, Sequence[int]], step: int, steps: int) -> dict[str, Any]:
        kept = {name: len(units) for name, units in keep.items()}
        return {
            "removed": self.budget.removed,
            "of": self.budget.of,
            "scope": self.budget.scope,
            "policy": self.policy_name,
            "allocation": self.budget.allocation,
            "schedule": self.schedule,
            "settle": self.settle,
            "units": list(self.units),
            "step": step + 1,
            "steps": steps,
            "steps_left_out": self.left_out,
            **({"multiple_of": dict(self.budget.multiple_of)} if self.budget.multiple_of else {}),
            **({"alignment": asdict(self.price)} if self.price else {}),
            **{
                currency: {"dense": self._cost.whole(currency), "left": self._cost.remaining(kept, currency)}
                for currency in self._cost.currencies
            },
        }


def _returned(before: Plan | None, keep: Mapping[str, Sequence[int]]) -> int:
    """Number of units that were selected to go at the update before and are whole again."""
    if before is None:
        return 0
    return sum(len(set(units).difference(before.keep[name])) for name, units in keep.items())
