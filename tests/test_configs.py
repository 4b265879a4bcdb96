"""Every shipped recipe parses and instantiates, says how it is run, and overlays go on the recipe they name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from upop.cli import build_parser, parse, recipe_of
from upop.runs import Recipe

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = sorted(CONFIGS.glob("*.yaml"))
REMOVED = {"3x": 0.667, "4x": 0.75, "5x": 0.8, "10x": 0.9}
OVERLAYS = sorted((CONFIGS / "overlays").glob("*.yaml"))


def made(*paths: str) -> Recipe:
    parser = build_parser()
    arguments = [argument for path in paths for argument in ("--config", str(CONFIGS.parent / path))]
    return recipe_of(parser, parse(parser, arguments))


def command(path: Path) -> list[str]:
    """The recipes that the first line of a file names."""
    first = path.read_text().splitlines()[0]
    assert first.startswith("# upop fit --config configs/"), f"{path} does not start with the command that runs it"
    return re.findall(r"--config (\S+)", first)


def test_there_are_recipes() -> None:
    names = {path.name for path in RECIPES}
    tasks = {"retrieval", "vqa", "caption", "nlvr"}
    assert {"coco_retrieval.yaml", "flickr30k_retrieval.yaml", "flickr8k_retrieval_mini.yaml", "demo.yaml"} <= names
    assert {f"demo_{task}.yaml" for task in tasks} <= names
    assert {"blip_retrieval.yaml", "blip_vqa.yaml", "blip_caption.yaml", "blip_nlvr2.yaml"} <= names
    assert OVERLAYS


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe(path: Path) -> None:
    assert command(path) == [f"configs/{path.name}"]
    recipe = made(f"configs/{path.name}")
    assert recipe.search.budget.removed == 0.5
    assert recipe.training["search"].epochs > 0
    assert recipe.training["retrain"].epochs > 0
    assert recipe.training["search"].lr_schedule == "constant", "as the authors search"
    assert Path(str(recipe.config["run_dir"])).name == path.stem


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_overlay(path: Path) -> None:
    named = command(path)
    assert named[-1] == f"configs/overlays/{path.name}"
    plain, changed = made(*named[:-1]), made(*named)
    assert plain.config != changed.config
    removed = REMOVED.get(path.stem.rpartition("_")[2], 0.5)  # without a factor in its name it changes the data
    assert changed.search.budget.removed == removed
    for phase in ("search", "retrain"):
        assert changed.training[phase].epochs == changed.training["retrain"].epochs
        assert changed.training[phase].epochs > plain.training[phase].epochs


@pytest.mark.parametrize(
    ("name", "overlays", "epochs", "lr", "interval", "weight_decay"),
    [
        ("coco_retrieval", [], 6, 1e-5, 200, 0.2),
        ("coco_retrieval", ["coco_retrieval_4x"], 9, 1e-5, 200, 0.2),
        ("flickr30k_retrieval", [], 12, 1e-5, 50, 0.2),
        ("flickr30k_retrieval", ["flickr30k_retrieval_4x"], 18, 1e-5, 50, 0.2),
        ("blip_retrieval", [], 6, 1e-5, 200, 0.05),
        ("blip_retrieval", ["blip_retrieval_4x"], 9, 1e-5, 200, 0.05),
        ("blip_retrieval", ["blip_retrieval_flickr30k"], 12, 1e-5, 50, 0.05),
        ("blip_retrieval", ["blip_retrieval_flickr30k", "blip_retrieval_flickr30k_4x"], 18, 1e-5, 50, 0.05),
        ("blip_vqa", [], 10, 2e-5, 1000, 0.05),
        ("blip_vqa", ["blip_vqa_4x"], 15, 2e-5, 1000, 0.05),
        ("blip_caption", [], 5, 1e-5, 100, 0.05),
        ("blip_caption", ["blip_caption_4x"], 8, 1e-5, 100, 0.05),
        ("blip_nlvr2", [], 15, 3e-6, 50, 0.05),
        ("blip_nlvr2", ["blip_nlvr2_3x"], 20, 3e-6, 50, 0.05),
        ("blip_nlvr2", ["blip_nlvr2_4x"], 23, 3e-6, 50, 0.05),
        ("blip_nlvr2", ["blip_nlvr2_5x"], 24, 3e-6, 50, 0.05),
        ("blip_nlvr2", ["blip_nlvr2_10x"], 27, 3e-6, 50, 0.05),
    ],
)
def test_the_authors_settings(
    name: str, overlays: list[str], epochs: int, lr: float, interval: int, weight_decay: float
) -> None:
    recipe = made(f"configs/{name}.yaml", *[f"configs/overlays/{overlay}.yaml" for overlay in overlays])
    for phase in ("search", "retrain"):
        assert recipe.training[phase].epochs == epochs
        assert recipe.training[phase].lr == lr
        assert recipe.training[phase].weight_decay == weight_decay
    assert recipe.search.interval == interval
    assert recipe.search.policy_name == "unified"
    assert recipe.search.settle == 1.0
    assert not recipe.distillation.on


def test_an_overlay_can_change_the_data() -> None:
    recipe = made("configs/blip_retrieval.yaml", "configs/overlays/blip_retrieval_flickr30k.yaml")
    assert type(recipe.data).__name__ == "Flickr30kRetrieval"
    assert (recipe.data.text_length, recipe.data.clean_captions) == (35, True), "what both data sets know stays"
    assert (recipe.task.k, recipe.task.negatives) == (128, "all_ranks")
