"""The guard of every phase: a step that is not finite is left out, counted, and after some in a row ends the run.

A step is left out where its loss or one of its gradients is NaN or infinite, on any rank: then on all ranks. Gradients
count as infinite where their squares are (the optimizer's second moment would not come back from it). Weights, moments
and scores stay as they were; the learning rate and the schedule of the search go on. Numbers that the task keeps of the
batch itself, such as the features in a queue, are set to 0 where they are NaN, or they would spoil the steps to come.

It costs the norm of the gradients and one read from the device per step, which a step cannot be left out without: the
host has to know before the optimizer runs. In a search it takes the place of a check of the search's own.

With fp16 the gradient scaler skips steps, too, until it has found its scale. They are none of ours: a step whose loss
is finite counts only once the scale has fallen below 1, where it makes gradients no larger.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor
from torch.nn.utils import get_total_norm

from upop.files import write_json
from upop.shards import held

NONFINITE = "nonfinite.json"
"""Name of the file, in the directory of a phase, that lists the steps that were left out."""
LISTED = 100
Verdict = Literal["fine", "overflow", "left out"]


@dataclass(frozen=True)
class Guards:
    """When a run is warned of what goes wrong, and when it ends.

    Attributes:
        stop_after: Steps in a row whose loss or gradients are not finite, after which the run ends; 0 goes on for ever.
            Each is left out, in every phase, and its samples are listed in ``nonfinite.json`` in the phase's directory.
        explode: The loss of the search has exploded where its mean exceeds ``explode * (best + 1)`` twice in a row.
            Means are taken between mask updates, over at least 10 optimizer steps; ``best`` is the lowest so far. The 1
            keeps a loss near 0 from being measured by its noise, and units that fade from looking like it. One warning;
            0 does not look.
        stop_exploded: Means in a row with an exploded loss, after which the run ends; 0 goes on, as the retraining
            often mends what a search has broken.
        vanish: A modality, or its units of one kind, vanishes where less than this fraction of its prunable cost is
            selected to stay, or one unit at each site, while another keeps more than twice that. One warning each, with
            the ceiling that prevents it; 0 does not look.
    """

    stop_after: int = 5
    explode: float = 3.0
    stop_exploded: int = 0
    vanish: float = 0.05

    def __post_init__(self) -> None:
        for name in ("stop_after", "stop_exploded"):
            if getattr(self, name) < 0:
                raise ValueError(f"guards.{name} is {getattr(self, name)!r}; give 0 (never) or more")
        if self.explode and not 1.0 <= self.explode < math.inf:
            raise ValueError(f"guards.explode is {self.explode!r}; give a factor of 1 or more, or 0 (does not look)")
        if not 0.0 <= self.vanish < 0.5:
            raise ValueError(f"guards.vanish is {self.vanish!r}; it is a fraction kept, from 0 to below 0.5")


class StepGuard(Callback):
    """Leaves out steps that are not finite, and ends the run after several in a row.

    Args:
        stop_after: Steps in a row after which the run ends; 0 for never.
        phase: Name of the phase, for messages.
        file: Where to list the steps that were left out, with their samples per rank; ``None`` for nowhere.

    Attributes:
        left_out: Steps left out so far.
    """

    def __init__(self, stop_after: int = Guards.stop_after, phase: str = "training", file: Path | None = None) -> None:
        self.stop_after, self.phase, self.file = stop_after, phase, file
        self.left_out = 0
        self._in_row = 0
        self._listed: list[dict[str, Any]] = []
        self._losses: list[Tensor] = []
        self._batches: list[tuple[int, Mapping[str, Tensor]]] = []
        self._checked: tuple[int, Verdict] = (-1, "fine")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with nothing seen."""
        self._losses, self._batches, self._checked = [], [], (-1, "fine")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Note which samples the batch holds."""
        self._batches.append((batch_idx, _numbers(batch)))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Note the loss, scaled as it may be."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: object) -> None:
        """Check the step, if nobody has asked before."""
        self.check(trainer, pl_module)

    def check(self, trainer: Trainer, module: LightningModule, *beside: Tensor) -> Verdict:
        """Whether the step that is about to be taken is finite; asked twice, it looks once. Leaves it out if not.

        Args:
            trainer: The trainer, in its hook before the optimizer's step.
            module: Module whose gradients to look at.
            *beside: Gradients to look at besides.

        Returns:
            ``fine``; ``overflow`` for a step that the gradient scaler needs to find its scale; or ``left out``.

        Raises:
            ValueError: If it is the last of too many in a row.
        """
        step = trainer.global_step
        if self._checked[0] != step:
            self._checked = (step, self._judge(trainer, module, beside))
            self._losses, self._batches = [], []
        return self._checked[1]

    def _judge(self, trainer: Trainer, module: LightningModule, beside: tuple[Tensor, ...]) -> Verdict:
        bad_loss, bad_gradient = _faults(trainer, module, self._losses, beside)
        if not bad_loss and not bad_gradient:
            self._in_row = 0
            return "fine"
        _drop_gradients(trainer, module)  # or the optimizer would carry the fault into weights and moments
        if _scaler(trainer) is not None and not bad_loss and scale(trainer) >= 1.0:
            return "overflow"  # the scaler has seen it, too, and skips the step itself
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.nan_to_num_(nan=0.0, posinf=math.inf, neginf=-math.inf)
        self._note(trainer, "the loss" if bad_loss else "a gradient")
        return "left out"

    def _note(self, trainer: Trainer, what: str) -> None:
        """Count a step that was left out, list and log it, warn, and end the run if it is one too many."""
        step = trainer.global_step
        self.left_out += 1
        self._in_row += 1
        row = {"step": step, "epoch": trainer.current_epoch, "not_finite": what, "ranks": self._on_all_ranks(trainer)}
        self._listed = [*self._listed, row][-LISTED:]
        if self.file is not None:
            about = "samples and indices are positions in the training split, from 0; step is the optimizer's, from 0"
            told = {"format": 1, "phase": self.phase, "note": about, "steps": self._listed}
            rank_zero_only(write_json)(self.file, told)
        for logger in trainer.loggers:
            logger.log_metrics({"steps_left_out": float(self.left_out)}, step=step)
        where = f"; its samples are in {str(self.file)!r}" if self.file else ""
        if 0 < self.stop_after <= self._in_row:
            raise ValueError(
                f"{self.phase}: {what} is not finite at step {step}, as in {self._in_row} steps in a row "
                f"(guards.stop_after){where}; lower {self.phase}.lr, raise {self.phase}.warmup_steps, set "
                "trainer.gradient_clip_val, or take bf16-mixed in place of 16-mixed"
            )
        rank_zero_warn(
            f"{self.phase}: {what} is not finite at step {step}: left out ({self.left_out} so far), weights unchanged"
            f"{where}"
        )

    def _on_all_ranks(self, trainer: Trainer) -> list[dict[str, Any]]:
        """What each rank knows of the step: its losses, their parts and its samples, batch by batch."""
        factor = trainer.accumulate_grad_batches / scale(trainer)
        parts = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("loss/")}
        own = {
            "rank": trainer.global_rank,
            "losses": [_plain(factor * float(loss)) for loss in self._losses],
            "parts": {name: _plain(float(value)) for name, value in parts.items()},
            "batches": [
                {"batch": number, **_samples(trainer, number), **{name: found.tolist() for name, found in ids.items()}}
                for number, ids in self._batches
            ],
        }
        if trainer.world_size == 1:
            return [own]
        found: list[dict[str, Any]] = [{}] * trainer.world_size
        torch.distributed.all_gather_object(found, own)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Counts and the list, for a checkpoint."""
        return {"left_out": self.left_out, "in_row": self._in_row, "listed": self._listed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` gave."""
        self.left_out, self._in_row = state_dict["left_out"], state_dict["in_row"]
        self._listed = list(state_dict["listed"])


def scale(trainer: Trainer) -> float:
    """What fp16 has scaled the loss, and with it the gradients, by; 1 elsewhere."""
    scaler = _scaler(trainer)
    return 1.0 if scaler is None else float(scaler.get_scale())


def _scaler(trainer: Trainer) -> torch.amp.GradScaler | None:
    return getattr(trainer.precision_plugin, "scaler", None)


def _faults(
    trainer: Trainer, module: LightningModule, losses: list[Tensor], beside: tuple[Tensor, ...]
) -> tuple[bool, bool]:
    """Whether a loss, and whether a gradient, is not finite on any rank. One read from the device."""
    gradients = _gradients(trainer, module)
    norms = [get_total_norm(group).float() for group in (gradients, list(beside)) if group]
    device = module.device
    faults = [
        ~torch.isfinite(torch.stack([value.to(device) for value in group])).all() if group else _none(device)
        for group in ([loss.float() for loss in losses], norms)
    ]
    found = torch.stack(faults).float()
    if trainer.world_size > 1:
        found = cast(Tensor, trainer.strategy.reduce(found, reduce_op="sum"))
    bad_loss, bad_gradient = found.tolist()
    return bool(bad_loss), bool(bad_gradient)


def _none(device: torch.device) -> Tensor:
    return torch.zeros((), dtype=torch.bool, device=device)


def _gradients(trainer: Trainer, module: LightningModule) -> list[Tensor]:
    """What this rank holds of the gradients; a strategy may keep them itself."""
    kept = getattr(trainer.strategy, "gradients", None)
    found = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    return kept() if kept else [piece for gradient in found for piece in held(gradient)]


def _drop_gradients(trainer: Trainer, module: LightningModule) -> None:
    """Have the optimizer take no step."""
    drop = getattr(trainer.strategy, "drop_gradients", None)
    if drop:
        drop()
    for parameter in module.parameters():
        parameter.grad = None


def _numbers(batch: object) -> dict[str, Tensor]:
    """What in a batch says which samples it holds: a number for each, named ``index``, ``..._index`` or ``..._id``."""
    entries = batch.items() if isinstance(batch, Mapping) else ()
    return {
        name: value
        for name, value in entries
        if name.endswith(("index", "_id")) and isinstance(value, Tensor) and value.dim() == 1
    }


def _samples(trainer: Trainer, batch_idx: int) -> dict[str, list[int]]:
    """The samples of a batch of the running epoch, as a sampler draws them that starts at its ``skip``-th batch."""
    loader = trainer.train_dataloader
    skip = getattr(getattr(loader, "sampler", None), "skip", None)
    if skip is None:  # another sampler may draw another order when asked again
        return {}
    drawn: list[Any] = next(islice(iter(loader.batch_sampler), batch_idx - skip, None), [])
    return {"samples": [entry[-1] if isinstance(entry, tuple) else entry for entry in drawn]}


def _plain(value: float) -> float | str:
    """A number that JSON can hold; ``nan`` and ``inf`` as words."""
    return value if math.isfinite(value) else str(value)
