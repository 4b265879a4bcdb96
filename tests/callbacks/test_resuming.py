"""Random state and checkpoints of a run that goes on in the middle of an epoch."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from upop.callbacks import RandomState, StepCheckpoint


class Dropper(LightningModule):
    """Writes down what dropout and Python's generator draw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[list[float], float]] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        kept = torch.nn.functional.dropout(torch.ones(6), 0.5)
        self.seen.append((kept.tolist(), random.random()))
        return self.weight * kept.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Stop(Exception):  # noqa: N818 (it is no error of the code)
    """The run is killed here."""


class Kill(Callback):
    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.batch:
            raise Stop


def trainer(path: Path, *callbacks: Callback, **arguments: Any) -> Trainer:
    saver = StepCheckpoint(path, "last", enable_version_counter=False, every_n_train_steps=1)
    return Trainer(
        callbacks=[RandomState(), saver, *callbacks],
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )


def data() -> DataLoader:
    return DataLoader(torch.arange(8.0), batch_size=1)


def test_dropout_goes_on_where_it_stood(tmp_path: Path) -> None:
    torch.manual_seed(5)
    random.seed(5)
    whole = Dropper()
    trainer(tmp_path / "whole").fit(whole, data())
    torch.manual_seed(5)
    random.seed(5)
    broken = Dropper()
    with pytest.raises(Stop):
        trainer(tmp_path / "broken", Kill(3)).fit(broken, data())
    torch.manual_seed(99)
    random.seed(99)
    resumed = Dropper()
    trainer(tmp_path / "broken").fit(resumed, data(), ckpt_path=tmp_path / "broken/last.ckpt", weights_only=True)
    assert [*broken.seen, *resumed.seen][: len(whole.seen)] == whole.seen


def test_nothing_is_saved_inside_a_window_of_accumulated_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    run = trainer(tmp_path, accumulate_grad_batches=4)
    monkeypatch.setattr(Trainer, "save_checkpoint", lambda self, *_, **__: saved.append(self.fit_loop.batch_idx))
    run.fit(Dropper(), data())
    assert set(saved) == {3, 7}
