"""What inspect prints, against counting by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.plans import random_plan
from upop.export import load, save
from upop.families import find_sites
from upop.runs.inspection import inspect
from upop.surgery import shrink_


def test_dense_model(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect(str(checkpoint))
    screen = capsys.readouterr().out
    model, _ = load(checkpoint)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert f"{count / 1000:.1f} K parameters" in screen
    for what in ("vision", "text", "head_dim", "neuron", "0.25", "0.5", "0.75", "17 vision", "32 text"):
        assert what in screen, what


def test_compressed_directory(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, processor = load(checkpoint)
    sites = find_sites(model, ["neuron"])
    plan = random_plan(sites, 2)
    shrink_(model, sites, plan)
    save(model, processor, tmp_path / "cut", plan, ["neuron"])
    inspect(str(tmp_path / "cut"))
    screen = capsys.readouterr().out
    left = sum(parameter.numel() for parameter in model.parameters())
    assert f"{left / 1000:.1f} K" in screen
    assert "compressed" in screen


def test_heads_alone(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect(str(checkpoint), ["head"])
    assert "head" in capsys.readouterr().out


def test_a_directory_whose_name_looks_like_markup(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = shutil.copytree(checkpoint, tmp_path / "[bold]clip[" / "x]")
    inspect(str(odd))
    assert "[bold]clip[/x]" in "".join(capsys.readouterr().out.splitlines())
