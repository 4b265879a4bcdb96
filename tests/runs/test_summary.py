"""The end of a run: summary.json, pictures and the last lines on screen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.recipes import recipe
from upop.runs import RunDirectory, fit
from upop.runs.summary import summarise


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
    assert "image to text R@1" in (path / "summary.txt").read_text()
    plan = json.loads((path / "plan.json").read_text())
    assert summary["states"]["retrained"]["params"] == plan["facts"]["params"]["left"]
    assert sum(row["params_removed"] for row in summary["removed"]) == (
        plan["facts"]["params"]["dense"] - plan["facts"]["params"]["left"]
    )
    assert summary["states"]["cut"]["mean"] == directory.evaluation("cut")["mean"]  # type: ignore[index]
    for name in ("allocation.png", "search.png"):
        with Image.open(path / name) as picture:
            assert picture.width > 600
