"""A run that is killed again and again ends where the unbroken one does, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.recipes import write
from tests.runs.processes import result

RUNS, KILLS = 7, 42


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_random_moments_at_file_operations_and_amid_files(config: dict[str, Any], tmp_path: Path) -> None:
    config["finetune"] = {"epochs": 2, "lr": 1e-3}
    config["model"]["init_args"] |= {"contrast": "queue", "queue_size": 12}
    config["data"]["init_args"]["augment"] = "light"
    config["distill"] = {"logits": 1.0, "features": 1.0}
    config["checkpoints"] = {"every_minutes": 0.0005}  # also within epochs
    runs = [tmp_path / name for name in ("unbroken", *(f"killed{number}" for number in range(RUNS)))]
    recipe = write(config, tmp_path / "config.yaml")
    ended = subprocess.run(
        [sys.executable, "-m", "tests.runs.killing", str(recipe), *map(str, runs), "--kills", str(KILLS)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    kills = json.loads(ended.stdout.splitlines()[-1])["kills"]
    assert len(kills) >= 30
    places = {(tuple(kill["phases"]), len(kill["started"]) > len(kill["phases"])) for kill in kills}
    done = [(), ("finetune",), ("finetune", "search")]
    assert {(phases, True) for phases in done} <= places, "no kill fell into one of the phases"
    assert {(phases, False) for phases in done[1:]} <= places, "no kill fell between two phases"
    assert {kill["by"] for kill in kills} == {"clock", "file", "bytes"}
    torn = [kill["what"].split() for kill in kills if kill["by"] == "bytes"]
    kinds = {name.rpartition(".")[2] for name, size in torn if int(size)}
    assert kinds >= {"ckpt", "safetensors", "json"}, "no kill fell amid the bytes of one of them"
    unbroken = result(runs[0])
    for run in runs[1:]:
        assert result(run) == unbroken, run.name
