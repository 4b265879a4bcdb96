"""What Lightning's checkpoints leave out, so that a resumed run goes on exactly as the unbroken one."""

from __future__ import annotations

import random
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class RandomState(Callback):
    """Saves the state of the random number generators and puts it back before the first batch of a resumed run.

    Dropout draws from them; the data do not (their draws follow from seed, epoch and sample). Each rank restores what
    rank 0 saved, shifted by its rank, so that ranks do not draw alike.
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """State of torch's generators, of the CPU and every CUDA device, and of Python's."""
        version, numbers, gauss = random.getstate()
        return {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "python": [version, list(numbers), gauss],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the first batch: building loaders and moving modules may draw before it."""
        self._restored = state_dict

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Put the state back, once."""
        state, self._restored = self._restored, {}
        if not state:
            return
        version, numbers, gauss = state["python"]
        random.setstate((version, tuple(numbers), gauss))
        torch.set_rng_state(state["cpu"])
        if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])
        if trainer.global_rank:
            torch.manual_seed(torch.initial_seed() + trainer.global_rank)


class StepCheckpoint(ModelCheckpoint):
    """A checkpoint that is written between optimizer steps only.

    Inside a window of accumulated batches the gradients so far would be lost.
    """

    _step = 0

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:  # noqa: ANN401 (Lightning's own)
        """Let Lightning decide, if this batch ended with an optimizer step."""
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            super().on_train_batch_end(trainer, *arguments)
