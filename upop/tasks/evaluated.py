"""What every evaluation has in common: it starts, takes in batches, and reports, for either split in the same way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from upop.tasks.base import Task
from upop.tasks.uneven import check_even


class EvaluatedTask(Task, ABC):
    """A task that evaluates the validation and the test split alike; Lightning's hooks call its three steps."""

    def on_train_start(self) -> None:
        """Refuse ranks that do not have the same batches."""
        if self.trainer.world_size > 1:
            check_even(self.trainer.train_dataloader, lambda facts: self.all_gather(facts.to(self.device)))

    @abstractmethod
    def _start_evaluation(self) -> None:
        """Forget what an earlier evaluation found."""

    @abstractmethod
    def _evaluate(self, batch: dict[str, Tensor]) -> None:
        """Take in a batch of the split."""

    @abstractmethod
    def _report(self, split: Literal["val", "test"]) -> None:
        """Log what was found, in percent, and write what is to be written."""

    def _log_scores(self, split: Literal["val", "test"], scores: Mapping[str, float]) -> None:
        """Log scores of a whole split, which every rank has alike."""
        values = {f"{split}/{name}": value for name, value in scores.items()}
        self.log_dict(values, sync_dist=True, reduce_fx="max")  # the maximum of equal values is exact, a mean is not

    def on_validation_epoch_start(self) -> None:
        """Start an evaluation."""
        self._start_evaluation()

    def on_test_epoch_start(self) -> None:
        """Start an evaluation."""
        self._start_evaluation()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Take in a batch of the validation split; an empty one is that of a rank without samples."""
        if batch:
            self._evaluate(batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Take in a batch of the test split; an empty one is that of a rank without samples."""
        if batch:
            self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the validation split."""
        self._report("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test split."""
        self._report("test")
