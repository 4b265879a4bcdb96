"""Batches that are not finite, at chosen steps of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class Poison(Callback):
    """Makes the images of a batch NaN, in place, at some optimizer steps of a phase, on one rank or all."""

    def __init__(self, steps: list[int], phase: str, rank: int | None = None) -> None:
        self.steps, self.phase, self.rank = steps, phase, rank

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        here = Path(trainer.default_root_dir).name == self.phase and self.rank in (None, trainer.global_rank)
        if here and trainer.global_step in self.steps:
            batch["pixel_values"].fill_(torch.nan)


class Omit(Callback):
    """Takes the gradients away at some optimizer steps of a phase: what leaving them out has to come to."""

    def __init__(self, steps: list[int], phase: str) -> None:
        self.steps, self.phase = steps, phase

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if Path(trainer.default_root_dir).name != self.phase or trainer.global_step not in self.steps:
            return
        for parameter in pl_module.parameters():
            parameter.grad = None
        for callback in trainer.callbacks:
            if hasattr(callback, "_masks"):
                callback._masks.clear()
