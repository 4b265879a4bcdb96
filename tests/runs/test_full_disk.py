"""A disk that fills up: what was there stays whole, one line says what to do, and the run goes on later."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from tests.recipes import recipe, write
from tests.runs.test_signals import contents, run
from upop.cli import main
from upop.files import DiskFullError
from upop.runs import phases
from upop.structure import Plan


class Fill(Callback):
    """Fills the disk of ``UPOP_TEST_FILL`` in the second epoch, when there is a checkpoint of the first."""

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.current_epoch == 1 and "UPOP_TEST_FILL" in os.environ:
            fill(Path(os.environ["UPOP_TEST_FILL"]))


def fill(disk: Path) -> None:
    """Leave no byte free."""
    with (disk / "other").open("ab", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system of its own for this test: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def config(config: dict[str, Any]) -> dict[str, Any]:
    config["trainer"]["callbacks"] = [{"class_path": "tests.runs.test_full_disk.Fill"}]
    return config


def fails_for_want_of_room(config: dict[str, Any], path: Path, file: str) -> None:
    """Run until the disk is full; the error names the file."""
    with pytest.raises(DiskFullError) as full:
        run(config, path)
    assert str(full.value).startswith(f"no room for '{path / file}': 0.0 MB are free on its disk")
    assert str(full.value).endswith(
        "free some, or go on in a run_dir on a larger disk (copy this one there), and run the same command again"
    )
    assert not list(path.rglob(".*")), "nothing half written takes up room"


def test_a_checkpoint_without_room_leaves_the_one_of_before(
    config: dict[str, Any], disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPOP_TEST_FILL", str(disk))
    last = "search/checkpoints/last.ckpt"
    fails_for_want_of_room(config, disk / "run", last)
    assert torch.load(disk / "run" / last, weights_only=True)["epoch"] == 0
    (disk / "other").unlink()
    monkeypatch.delenv("UPOP_TEST_FILL")
    run(config, disk / "run")
    run(config, tmp_path / "unbroken")
    assert contents(disk / "run") == contents(tmp_path / "unbroken")


@pytest.mark.parametrize(
    ("owner", "name", "file"),
    [
        (Plan, "save", "plan.json"),
        (phases, "evaluate", "state.json"),
        (phases, "_save_carried", "search/carried.safetensors"),
        (phases, "_save", "search/compressed"),
    ],
)
def test_other_files_without_room_are_named(
    owner: object, name: str, file: str, config: dict[str, Any], disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config["model"]["init_args"] |= {"contrast": "queue", "queue_size": 12}
    original: Callable[..., Any] = getattr(owner, name)

    def filling(*arguments: Any, **named: Any) -> Any:
        found = original(*arguments, **named) if name == "evaluate" else None
        if (disk / "run/search/checkpoints/last.ckpt").is_file():
            fill(disk)
        return found if name == "evaluate" else original(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, filling)
        fails_for_want_of_room(config, disk / "run", file)
    (disk / "other").unlink()
    run(config, disk / "run")
    assert (disk / "run/compressed/model.safetensors").is_file()


def test_a_disk_that_is_too_small_is_refused_before_anything_is_trained(
    config: dict[str, Any], disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(disk)
    os.truncate(disk / "other", os.stat(disk / "other").st_size - 2**17)
    config["run_dir"] = str(disk / "run")
    recipe(config, tmp_path / "config.yaml")
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(write(config, tmp_path / "config.yaml"))])
    assert stop.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("upop: error: search needs ")
    assert f"in '{disk}/run/search' for checkpoints and its model, but 0.1 MB are free on that disk" in last
    assert not (disk / "run/search").exists()
