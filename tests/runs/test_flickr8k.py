"""Real photographs and a real trained model: the documented recalls, and a cut that changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from upop.cli import build_parser, parse, recipe_of
from upop.cost import CostModel, measure
from upop.export import load
from upop.families import example_inputs, find_sites
from upop.masks import Masks, mask_values
from upop.runs import evaluate
from upop.search import Budget, create, priorities, select
from upop.structure import Plan
from upop.surgery import shrink_

ROOT = Path(__file__).parent.parent.parent
NEEDED = [ROOT / "../shared/data/flickr8k", ROOT / "../shared/checkpoints/clip-mini-flickr8k"]
MISSING = [str(path) for path in NEEDED if not path.is_dir()]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=f"needs {MISSING}")]

DENSE = {"t2i_r1": 5.68, "t2i_r5": 19.72, "t2i_r10": 31.22, "i2t_r1": 7.00, "i2t_r5": 21.60, "i2t_r10": 31.50}
"""Recalls that the README beside the checkpoint states, five galleries of 200."""


def test_dense_recalls_are_the_documented_ones_and_the_cut_changes_no_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    parser = build_parser()
    config = ["--config", "configs/flickr8k_retrieval_mini.yaml", "--trainer.enable_progress_bar=false"]
    recipe = recipe_of(parser, parse(parser, config))
    model, processor = load(recipe.task.checkpoint)
    task = recipe.new_task(model, processor)
    found = evaluate(recipe, task)
    assert {name: round(found[name], 2) for name in DENSE} == pytest.approx(DENSE, abs=0.011)
    assert found["mean"] == pytest.approx(19.45, abs=0.005)

    sites = find_sites(model)
    cost = CostModel(sites, measure(model, sites, example_inputs(model)))
    scores = create("magnitude", sites).scores({site.name: torch.rand(site.units) for site in sites})
    keep = select(priorities(scores, sites, "uniform"), sites, cost, Budget(0.5))
    plan = Plan.of(keep, sites)
    assert cost.removed(plan.kept(), "params") == pytest.approx(0.5 * cost.prunable("params"), rel=0.005)
    masks = Masks(model, sites)
    masks.write_(mask_values(sites, plan))
    masked = evaluate(recipe, task)
    batch = next(iter(recipe.data.train_dataloader()))
    batch = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    with torch.no_grad():
        before = task.model.eval()(**batch).logits_per_image
    masks.detach()
    shrink_(model, sites, plan)
    with torch.no_grad():
        after = task.model(**batch).logits_per_image
    assert evaluate(recipe, task) == masked
    assert (after - before).abs().max() < 1e-5
