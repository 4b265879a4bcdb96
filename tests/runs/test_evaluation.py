"""Evaluating one checkpoint: dense, masked or compressed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.plans import random_plan
from tests.recipes import recipe
from upop.export import load, save
from upop.families import find_sites
from upop.runs.evaluation import evaluate_checkpoint
from upop.surgery import shrink_


def test_masked_and_cut_have_the_same_metrics(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = recipe(config, tmp_path / "config.yaml")
    model, processor = load(made.task.checkpoint)
    sites = find_sites(model)
    plan = random_plan(sites, 5)
    plan.save(tmp_path / "plan.json")
    shrink_(model, sites, plan)
    save(model, processor, tmp_path / "cut", plan, plan.kinds())
    masked = evaluate_checkpoint(made, None, str(tmp_path / "plan.json"))
    cut = evaluate_checkpoint(made, str(tmp_path / "cut"))
    assert masked == cut
    assert "(masked)" in capsys.readouterr().out


def test_a_plan_of_another_model_is_refused(config: dict[str, Any], tmp_path: Path) -> None:
    made = recipe(config, tmp_path / "config.yaml")
    model, _ = load("timm/vit_tiny_patch16_224", from_scratch=True)
    random_plan(find_sites(model), 1).save(tmp_path / "plan.json")
    with pytest.raises(ValueError, match="plan names site 'blocks.0.attn.head_dim', but this model has"):
        evaluate_checkpoint(made, None, str(tmp_path / "plan.json"))
