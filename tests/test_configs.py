"""Every shipped recipe parses and instantiates, says how it is run, and overlays go on the recipe they name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from upop.cli import build_parser, parse, recipe_of
from upop.runs import Recipe

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = sorted(CONFIGS.glob("*.yaml"))
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
    assert {"coco_retrieval.yaml", "flickr30k_retrieval.yaml", "flickr8k_retrieval_mini.yaml", "demo.yaml"} <= names
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
    assert changed.search.budget.removed == 0.75


@pytest.mark.parametrize(
    ("name", "overlay", "epochs", "lr", "interval"),
    [
        ("coco_retrieval", None, 6, 1e-5, 200),
        ("coco_retrieval", "coco_retrieval_4x", 9, 1e-5, 200),
        ("flickr30k_retrieval", None, 12, 1e-5, 50),
        ("flickr30k_retrieval", "flickr30k_retrieval_4x", 18, 1e-5, 50),
    ],
)
def test_the_authors_settings(name: str, overlay: str | None, epochs: int, lr: float, interval: int) -> None:
    paths = [f"configs/{name}.yaml"] + ([f"configs/overlays/{overlay}.yaml"] if overlay else [])
    recipe = made(*paths)
    for phase in ("search", "retrain"):
        assert recipe.training[phase].epochs == epochs
        assert recipe.training[phase].lr == lr
        assert recipe.training[phase].weight_decay == 0.2
    assert recipe.search.interval == interval
    assert recipe.search.policy_name == "unified"
    assert not recipe.distillation.on
