"""Random state and checkpoints of a run that goes on in the middle of an epoch."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from upop.callbacks import DataState, RandomState, StepCheckpoint
from upop.data.sampling import train_loader


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
        callbacks=[RandomState(), DataState(), saver, *callbacks],
        max_epochs=arguments.pop("epochs", 1),
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


class Scheduled(Dropper):
    """Asks for the number of steps before the checkpoint is read, as a schedule does, and writes its batches down."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[tuple[int, int]]] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.batches.append(batch.tolist())
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.trainer.estimated_stepping_batches == 8
        return super().configure_optimizers()


class Twelve(Dataset):
    """Twelve samples that say which they are and of which epoch."""

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        return torch.tensor(key)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("epoch", [0, 1])
def test_the_data_go_on_inside_an_epoch(tmp_path: Path, epoch: int, workers: int) -> None:
    def loader() -> DataLoader:
        return train_loader(Twelve(), 12, 3, 0, workers, torch.stack)

    whole, broken, resumed = Scheduled(), Scheduled(), Scheduled()
    trainer(tmp_path / "whole", epochs=2).fit(whole, loader())

    class KillLater(Kill):
        def on_train_batch_start(self, trainer: Trainer, *arguments: Any) -> None:
            if trainer.current_epoch == epoch:
                super().on_train_batch_start(trainer, *arguments)

    with pytest.raises(Stop):
        trainer(tmp_path / "broken", KillLater(2), epochs=2).fit(broken, loader())
    assert len(broken.batches) == 4 * epoch + 2
    last = tmp_path / "broken/last.ckpt"
    trainer(tmp_path / "broken", epochs=2).fit(resumed, loader(), ckpt_path=last, weights_only=True)
    assert [*broken.batches, *resumed.batches] == whole.batches


def test_a_checkpoint_of_more_processes_is_warned_of(tmp_path: Path) -> None:
    state = RandomState().state_dict()
    callback = RandomState()
    callback.load_state_dict({"ranks": state["ranks"] * 2})
    message = "written by 2 processes, and now there are 1: dropout draws other numbers .* go on with as many processes"
    with pytest.warns(UserWarning, match=message):
        callback.on_train_batch_start(Trainer(accelerator="cpu", logger=False), Dropper(), None, 0)


def test_a_checkpoint_of_an_earlier_version_is_refused() -> None:
    with pytest.raises(ValueError, match="random state of one process, as an earlier version .*; delete it to start"):
        RandomState().load_state_dict({"cpu": torch.get_rng_state(), "cuda": [], "python": []})


class Second:
    """What the callback asks of a Trainer, on the second of two processes."""

    world_size, global_rank, global_step = 2, 1, 0


def test_ranks_begin_to_draw_each_their_own() -> None:
    torch.manual_seed(3)
    alike = torch.rand(3)
    torch.manual_seed(3)
    callback = RandomState()
    callback.on_train_batch_start(Second(), Dropper(), None, 0)  # type: ignore[arg-type]
    first = torch.rand(3)
    callback.on_train_batch_start(Second(), Dropper(), None, 1)  # type: ignore[arg-type]
    assert not torch.equal(first, alike)
    assert not torch.equal(torch.rand(3), first), "once, not at every batch"


def test_each_rank_gets_its_own_state_back() -> None:
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states += RandomState().state_dict()["ranks"]
    expected = torch.rand(3)
    callback = RandomState()
    callback.load_state_dict({"ranks": states})
    callback.on_train_batch_start(Second(), Dropper(), None, 0)  # type: ignore[arg-type]
    assert torch.equal(torch.rand(3), expected)
