"""Checkpoints that are whole or not there, when they are written, and how much room they need."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from tests.recipes import recipe
from upop.files import DiskFullError
from upop.runs import RunDirectory, fit
from upop.runs.checkpoints import Checkpoints, WholeCheckpointIO, check_room, checkpoint_bytes


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf")])
def test_an_interval_that_is_none_is_refused(minutes: float) -> None:
    with pytest.raises(ValueError, match=f"checkpoints.every_minutes is {minutes!r}; give a number of minutes above 0"):
        Checkpoints(minutes)


def test_a_phase_writes_as_often_as_it_is_told(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    save = Trainer.save_checkpoint
    monkeypatch.setattr(
        Trainer, "save_checkpoint", lambda self, *a, **k: (saved.append(self.global_step), save(self, *a, **k))
    )
    often = recipe(config | {"checkpoints": {"every_minutes": 1e-6}}, tmp_path / "config.yaml")
    fit(often, RunDirectory(tmp_path / "often", often.config), "search")
    assert sorted(set(saved)) == list(range(1, 9))
    saved.clear()
    seldom = recipe(config, tmp_path / "config.yaml")
    fit(seldom, RunDirectory(tmp_path / "seldom", seldom.config), "search")
    assert saved == [4, 8], "at the end of each epoch"


def test_the_interval_may_change_between_two_attempts(config: dict[str, Any], tmp_path: Path) -> None:
    made = recipe(config, tmp_path / "config.yaml")
    RunDirectory(tmp_path / "run", made.config).begin()
    other = recipe(config | {"checkpoints": {"every_minutes": 3}}, tmp_path / "config.yaml")
    RunDirectory(tmp_path / "run", other.config)


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, made = tmp_path / "checkpoints" / "last.ckpt", WholeCheckpointIO()
    made.save_checkpoint({"step": 1, "weights": torch.ones(3)}, path)

    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match=r"no room for '.*last\.ckpt'.*; the last\.ckpt of before is whole; free"):
        made.save_checkpoint({"step": 2}, path)
    assert made.load_checkpoint(path, weights_only=True)["step"] == 1
    assert os.listdir(path.parent) == ["last.ckpt"]


def test_what_a_killed_run_has_left_of_a_checkpoint_goes(tmp_path: Path) -> None:
    for name in (".last-abc.tmp.ckpt", "last.ckpt", "mine.ckpt"):
        (tmp_path / name).write_bytes(b"half")
    WholeCheckpointIO().save_checkpoint({"step": 1}, str(tmp_path / "last.ckpt"))
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "mine.ckpt"]


def test_storage_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="storage_options is {'a': 1}, but checkpoints are plain files; leave it out"):
        WholeCheckpointIO().save_checkpoint({}, tmp_path / "x.ckpt", {"a": 1})


def test_a_checkpoint_is_as_large_as_foretold(config: dict[str, Any], tmp_path: Path) -> None:
    made = recipe(config, tmp_path / "config.yaml")
    fit(made, RunDirectory(tmp_path / "run", made.config), "search")
    task = made.new_task(*made.start(), "search")
    found = (tmp_path / "run/search/checkpoints/last.ckpt").stat().st_size
    assert found == pytest.approx(checkpoint_bytes(task), rel=0.8), "names and counters weigh more than tiny weights"
    assert found > checkpoint_bytes(task)


def test_a_phase_without_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = torch.nn.Linear(1000, 1000, bias=False)  # 4 MB, 12 MB with moments
    monkeypatch.setattr("upop.runs.checkpoints.free_bytes", lambda path: 27e6)
    message = (
        f"search needs 28.0 MB in '{tmp_path}' for checkpoints and its model, but 27.0 MB are free on that disk; free "
        "some, or give a run_dir on a larger disk"
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_room("search", tmp_path, module)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").write_text("")  # one of the two is there
    check_room("search", tmp_path, module)
