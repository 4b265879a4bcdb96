"""What Lightning's checkpoints leave out, so that a resumed run goes on exactly as the unbroken one."""

from __future__ import annotations

import random
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import distributed


class RandomState(Callback):
    """Saves the random number generators of every rank and puts them back before the first batch of a resumed run.

    Dropout draws from them; the data do not (their draws follow from seed, epoch and sample). A phase begins with one
    seed on all ranks, which builds the same weights everywhere; from its first batch on each rank draws its own.
    """

    def __init__(self) -> None:
        self._restored: list[dict[str, Any]] = []
        self._begun = False

    def state_dict(self) -> dict[str, Any]:
        """State of torch's generators, of the CPU and of this process's GPU, and of Python's, by rank."""
        own = _state()
        ranks = [own]
        if distributed.is_available() and distributed.is_initialized():
            ranks = [own] * distributed.get_world_size()
            distributed.all_gather_object(ranks, own)
        return {"ranks": ranks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until the first batch: building loaders and moving modules may draw before it.

        Raises:
            ValueError: If they were saved by another version, which knew the first process only.
        """
        if "ranks" not in state_dict:
            raise ValueError(
                "the checkpoint holds the random state of one process, as an earlier version of upop saved it; delete "
                "it to start the phase again"
            )
        self._restored = list(state_dict["ranks"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the first batch."""
        self._begun = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Put this rank's state back, once; a rank that has none begins to draw its own."""
        if self._begun:
            return
        self._begun = True
        states, self._restored = self._restored, []
        if states and len(states) != trainer.world_size:
            rank_zero_warn(
                f"the checkpoint was written by {len(states)} processes, and now there are {trainer.world_size}: "
                "dropout draws other numbers from here on than in a run that was not interrupted; for the same result "
                "to the bit go on with as many processes"
            )
        if len(states) == trainer.world_size:
            _restore(states[trainer.global_rank])
        elif states or trainer.global_rank:
            torch.manual_seed(torch.initial_seed() + trainer.global_rank + trainer.world_size * trainer.global_step)


def _state() -> dict[str, Any]:
    version, numbers, gauss = random.getstate()
    gpu = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return {"cpu": torch.get_rng_state(), "cuda": gpu, "python": [version, list(numbers), gauss]}


def _restore(state: dict[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_initialized() and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])


class DataState(Callback):
    """Puts the training data back where they stood in the epoch that a checkpoint was written in.

    Lightning saves that, but does not put it back if the loaders were made before the checkpoint was read, as they are
    where a learning rate's schedule asks for the number of optimizer steps: the epoch would begin again.
    """

    def __init__(self) -> None:
        self._restored: list[dict[str, Any]] = []

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what Lightning has saved of the loaders."""
        self._restored = list(checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader", []))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the loader, once; nothing has been drawn from it yet."""
        loader, (states, self._restored) = trainer.train_dataloader, (self._restored, [])
        if len(states) == 1 and hasattr(loader, "load_state_dict"):
            loader.load_state_dict(states[0])


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
