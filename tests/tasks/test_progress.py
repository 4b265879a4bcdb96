"""The progress bar of long evaluations: shown on rank 0 where bars are on, beside Lightning's, and gone afterwards."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from rich.console import Console
from torch.utils.data import DataLoader

from upop.tasks import progress
from upop.tasks.progress import progress_bar


@dataclass
class Bar:
    """What is asked of Lightning's progress bars."""

    is_disabled: bool = False
    progress: Any = None
    refreshed: int = 0

    def refresh(self) -> None:
        self.refreshed += 1


@dataclass
class OfTrainer:
    """What is asked of a Trainer."""

    progress_bar_callback: Any
    is_global_zero: bool = True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal would get."""
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=100)
    monkeypatch.setattr(progress, "Console", lambda **_: console)
    return written


@pytest.mark.parametrize(
    "trainer", [OfTrainer(None), OfTrainer(Bar(is_disabled=True)), OfTrainer(Bar(), is_global_zero=False)]
)
def test_nothing_is_shown_where_bars_are_off_or_on_another_rank(trainer: OfTrainer, screen: io.StringIO) -> None:
    with progress_bar(trainer, "re-ranking", 10) as advance:
        advance(10)
    assert screen.getvalue() == ""


def test_a_bar_with_what_is_done_and_the_time_left(screen: io.StringIO) -> None:
    with progress_bar(OfTrainer(Bar()), "re-ranking", 10) as advance:
        advance(3)
        advance(4)
    shown = screen.getvalue()
    assert "re-ranking" in shown
    assert "7/10" in shown.replace(" ", "")
    assert "-:--:--" in shown, "a place for the time left"


def test_it_joins_a_display_that_is_there_and_leaves_it_as_it_was(screen: io.StringIO) -> None:
    shared = progress._display()
    before = shared.add_task("Testing", total=2)
    bar = Bar(progress=shared)
    with progress_bar(OfTrainer(bar), "re-ranking", 10) as advance:
        advance(4)
        assert [(task.description, task.completed) for task in shared.tasks] == [("Testing", 0), ("re-ranking", 4)]
        assert bar.refreshed == 1
    assert [task.id for task in shared.tasks] == [before]


def test_it_goes_when_the_work_fails(screen: io.StringIO) -> None:
    shared = progress._display()

    def work() -> None:
        with progress_bar(OfTrainer(Bar(progress=shared)), "re-ranking", 10):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        work()
    assert shared.tasks == []


class Module(LightningModule):
    """Works on when its batches are through."""

    def test_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        pass

    def on_test_epoch_end(self) -> None:
        with progress_bar(self.trainer, "re-ranking", 3) as advance:
            for _ in range(3):
                advance(1)


@pytest.mark.parametrize("bar", [RichProgressBar, TQDMProgressBar])
def test_lightning_s_own_bars_bear_it(bar: type, tmp_path: Path) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[bar()], default_root_dir=tmp_path)
    trainer.test(Module(), DataLoader(torch.zeros(2)), verbose=False)  # type: ignore[arg-type]
