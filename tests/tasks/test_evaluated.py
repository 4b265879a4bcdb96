"""Lightning's hooks reach the three steps of an evaluation, in order, for either split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from upop.tasks.evaluated import EvaluatedTask


class Noting(EvaluatedTask):
    """Writes down what is called."""

    def __init__(self) -> None:
        super().__init__("none")
        self.calls: list[Any] = []

    def _start_evaluation(self) -> None:
        self.calls.append("start")

    def _evaluate(self, batch: dict[str, Tensor]) -> None:
        self.calls.append(batch["x"].tolist())

    def _report(self, split: str) -> None:
        self.calls.append(split)


@pytest.mark.parametrize(("verb", "split"), [("validate", "val"), ("test", "test")])
@pytest.mark.parametrize("loaders", [1, 2])
def test_steps_come_in_order(tmp_path: Path, verb: str, split: str, loaders: int) -> None:
    data = DataLoader([{"x": torch.tensor(number)} for number in range(3)], batch_size=2)  # type: ignore[arg-type]
    task = Noting()
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path, barebones=False
    )
    getattr(trainer, verb)(task, dataloaders=[data] * loaders if loaders > 1 else data, verbose=False)
    assert task.calls == ["start", *([[0, 1], [2]] * loaders), split]


def test_a_task_without_the_steps_cannot_be_made() -> None:
    class Half(EvaluatedTask):
        def _evaluate(self, batch: dict[str, Tensor]) -> None: ...

    with pytest.raises(TypeError, match=r"abstract methods? '?_report'?"):
        Half("none")  # type: ignore[abstract]
