"""A run over two ranks, killed again and again on one or both, ends where the unbroken one does, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer

from tests.runs.processes import LIMIT, ended_by, over_two_ranks, result, settings, started, upop

KILLS = [(phase, ranks) for phase in ("search", "retrain") for ranks in ((0,), (1,), (0, 1))]
SHARE = 0.3
"""Of the time that a phase trains, in which a kill falls: every attempt goes on where the last one stood."""


class Here(Callback):
    """Notes the process of each rank when its phase trains, and when that has ended."""

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        note(trainer, "start").write_text(f"{os.getpid()}\n")

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        note(trainer, "end").touch()


def note(trainer: Trainer, what: str) -> Path:
    return Path(os.environ["UPOP_TEST_NOTES"], f"{Path(trainer.default_root_dir).name}.{trainer.global_rank}.{what}")


def kill(config: dict[str, Any], notes: Path, phase: str, ranks: tuple[int, ...], seconds: float) -> bool:
    """Run until a phase has trained for some seconds, then kill ranks and wait until all have ended.

    Returns:
        Whether the phase was still training.
    """
    for old in notes.iterdir():
        old.unlink()
    files = [notes / f"{phase}.{rank}.start" for rank in range(2)]
    with started("fit", config) as process:
        limit = time.monotonic() + LIMIT
        while not all(file.is_file() and file.read_text().endswith("\n") for file in files):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < limit
            time.sleep(0.005)
        time.sleep(seconds)
        for rank in ranks:
            os.kill(int(files[rank].read_text()), signal.SIGKILL)
        training = not (notes / f"{phase}.0.end").exists()
        process.wait(timeout=60)
        ended_by(process.pid, 60)
        said = process.communicate()[1]
    assert process.returncode == (-signal.SIGKILL if 0 in ranks else 2), said
    if len(ranks) == 1:
        assert f"upop: error: rank {ranks[0]}: died without a word" in said
    return training


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_random_moments_on_either_rank_or_both(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken, notes = tmp_path / "unbroken", tmp_path / "killed", tmp_path / "notes"
    notes.mkdir()
    monkeypatch.setenv("UPOP_TEST_NOTES", str(notes))
    config = over_two_ranks(settings(checkpoint, whole, contrast="queue", queue_size=24, momentum=0.9), whole)
    config["data"]["init_args"] |= {"augment": "light", "train_scenes": 96}
    config["retrain"]["epochs"] = 2
    config["checkpoints"] = {"every_minutes": 0.0005}  # also within epochs
    config["trainer"]["callbacks"] = [{"class_path": "tests.runs.test_killed_ranks.Here"}]
    unbroken = upop("fit", config)
    assert unbroken.returncode == 0, unbroken.stderr
    lasted = {
        phase: (notes / f"{phase}.0.end").stat().st_mtime - (notes / f"{phase}.0.start").stat().st_mtime
        for phase in ("search", "retrain")
    }
    draw = random.Random(0)
    config["run_dir"] = str(broken)
    training = [kill(config, notes, phase, ranks, draw.uniform(0.0, SHARE * lasted[phase])) for phase, ranks in KILLS]
    assert sum(training) >= 4, "too many kills fell after a phase had trained"
    last = upop("fit", config)
    assert last.returncode == 0, last.stderr
    assert "retrain: going on from" in last.stderr
    assert result(broken) == result(whole)
