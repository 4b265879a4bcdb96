"""The end of a run: summary.json, pictures and the last lines on screen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.recipes import recipe
from upop.runs import RunDirectory, fit
from upop.runs.summary import read_metrics, summarise


def test_summary_says_what_the_files_say(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(config["run_dir"])
    made = recipe(config, path.parent / "config.yaml")
    directory = RunDirectory(path, made.config)
    fit(made, directory)
    capsys.readouterr()
    summary = summarise(made, directory)
    screen = capsys.readouterr().out
    assert summary == json.loads((path / "summary.json").read_text())
    for what in ("parameters", "FLOPs", "latency, ms", "samples/s", "R@1", "vision", "head_dim", "neuron", str(path)):
        assert what in screen, what
    plan = json.loads((path / "plan.json").read_text())
    assert summary["states"]["retrained"]["params"] == plan["facts"]["params"]["left"]
    assert sum(row["params_removed"] for row in summary["removed"]) == (
        plan["facts"]["params"]["dense"] - plan["facts"]["params"]["left"]
    )
    assert summary["states"]["cut"]["mean"] == directory.evaluation("cut")["mean"]  # type: ignore[index]
    for name in ("allocation.png", "search.png"):
        with Image.open(path / name) as picture:
            assert picture.width > 600


def test_metrics_of_a_resumed_phase_read_as_one(tmp_path: Path) -> None:
    for version, text in (
        (0, "step,loss\n0,3.0\n1,2.0\n2,\n"),
        (1, "step,loss\n2,1.5\n3,1.0\n"),
        (10, "step,loss\n4,0.5\n"),
    ):
        (tmp_path / f"version_{version}").mkdir()
        (tmp_path / f"version_{version}" / "metrics.csv").write_text(text)
    assert read_metrics(tmp_path) == [
        {"step": 0.0, "loss": 3.0},
        {"step": 1.0, "loss": 2.0},
        {"step": 2.0, "loss": 1.5},
        {"step": 3.0, "loss": 1.0},
        {"step": 4.0, "loss": 0.5},
    ]
