"""The mean loss between two updates of a search, over all ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from lightning.pytorch import Trainer
from torch import Tensor, distributed


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

    def state(self) -> list[list[float]]:
        """The losses of every rank, for a checkpoint. Every rank has to ask."""
        own = [float(loss) for loss in self.losses]
        ranks = [own]
        if distributed.is_available() and distributed.is_initialized():
            ranks = [own] * distributed.get_world_size()
            distributed.all_gather_object(ranks, own)
        return ranks

    def restore(self, ranks: list[list[float]]) -> None:
        """Take this rank's share of what :meth:`state` gave; of another number of ranks the first takes all."""
        together = distributed.is_available() and distributed.is_initialized()
        rank, world = (distributed.get_rank(), distributed.get_world_size()) if together else (0, 1)
        if len(ranks) != world:
            ranks = [[loss for losses in ranks for loss in losses], *[[]] * (world - 1)]
        self.losses = [torch.tensor(loss) for loss in ranks[rank]]
