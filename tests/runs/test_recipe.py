"""What a recipe makes of its configuration, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import upop
from tests.recipes import recipe


def test_one_seed_drives_data_and_search(config: dict[str, Any], tmp_path: Path) -> None:
    made_recipe = recipe(config | {"seed_everything": 7}, tmp_path / "config.yaml")
    assert made_recipe.data.seed == made_recipe.search.seed == 7


def test_texts_are_counted_at_the_length_that_is_evaluated(config: dict[str, Any], tmp_path: Path) -> None:
    config["data"]["init_args"]["text_length"] = 20
    made_recipe = recipe(config, tmp_path / "config.yaml")
    model, processor = upop.load(made_recipe.task.checkpoint)
    made_recipe.new_task(model, processor)
    assert made_recipe.sample(model)["input_ids"].shape == (1, 20)
