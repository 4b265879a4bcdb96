"""The mean loss between two updates of a search, over all ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from lightning.pytorch import Trainer
from torch import Tensor


class MeanLoss:
    """Losses since they were last asked for; they stay on their device until then.

    Attributes:
        losses: Of the batches so far, scalars; those from before a resume lie on the CPU.
    """

    def __init__(self) -> None:
        self.losses: list[Tensor] = []

    def add(self, outputs: object, batches: int) -> None:
        """Take the loss of a batch.

        Args:
            outputs: What Lightning hands on of a training step.
            batches: Batches per optimizer step, by which Lightning has divided it.
        """
        if isinstance(outputs, Mapping) and isinstance(outputs.get("loss"), Tensor):
            self.losses.append(outputs["loss"].detach() * batches)

    def take(self, trainer: Trainer, device: torch.device) -> dict[str, float]:
        """The mean as ``loss``, over all ranks, and begin anew; nothing where no batch had a finite loss.

        Every rank has to ask.
        """
        losses, self.losses = self.losses, []
        found = torch.zeros(2, device=device)
        if losses:
            values = torch.stack([loss.to(device) for loss in losses]).float()
            finite = torch.isfinite(values)
            found = torch.stack([values[finite].sum(), finite.sum()])
        if trainer.world_size > 1:
            found = trainer.strategy.reduce(found, reduce_op="sum")
        total, count = found.tolist()
        return {"loss": total / count} if count else {}
