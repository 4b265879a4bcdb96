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

RUNS, KILLS = 7, 36


def result(run: Path) -> dict[str, Any]:
    """Everything that a run gives, but for its durations and the speed that was measured."""
    state = json.loads((run / "state.json").read_text())
    for facts in state["phases"].values():
        facts.pop("seconds_last_attempt")
    summary = json.loads((run / "summary.json").read_text())
    told = {key: summary[key] for key in ("recipe", "removed", "sites", "search", "steps_left_out")}
    files = {str(file.relative_to(run)): file.read_bytes() for file in sorted((run / "compressed").iterdir())}
    return {"state": state, "told": told, "plan": (run / "plan.json").read_bytes()} | files


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_random_moments_and_at_file_operations(config: dict[str, Any], tmp_path: Path) -> None:
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
    assert {kill["by"] for kill in kills} == {"clock", "file"}
    unbroken = result(runs[0])
    for run in runs[1:]:
        assert result(run) == unbroken, run.name
