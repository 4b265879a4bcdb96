"""Recipes: from YAML files and overrides to a task, data and three phases."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from upop.cli.explain import explain

if TYPE_CHECKING:
    from jsonargparse import Namespace
    from lightning.pytorch.cli import LightningArgumentParser

    from upop.runs import Recipe

SECTIONS = ("model", "data", "finetune", "search", "retrain", "distill", "guards", "checkpoints", "measure", "trainer")


def build_parser(verb: str = "fit", description: str = "") -> LightningArgumentParser:
    """The parser of a recipe: every signature is an option, every docstring its help."""
    from lightning.pytorch import LightningDataModule, Trainer
    from lightning.pytorch.cli import LightningArgumentParser

    from upop.callbacks import Guards, ProgressiveSearch
    from upop.runs.checkpoints import Checkpoints
    from upop.runs.timing import Measure
    from upop.tasks import Distillation, Task, Training

    parser = LightningArgumentParser(
        prog=f"upop {verb}", description=description, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--config", action="config", help="recipe, a YAML file; several overlay one another in order")
    parser.add_argument("--seed_everything", type=int, default=42, help="seed of weights, data, dropout and policy")
    parser.add_argument("--run_dir", type=str, default="runs/upop", help="directory of the run; resumed if it exists")
    parser.add_subclass_arguments(Task, "model", required=True)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    parser.add_class_arguments(Training, "finetune")
    parser.add_class_arguments(ProgressiveSearch, "search", instantiate=False)
    parser.add_class_arguments(Training, "search", instantiate=False, as_group=False)
    parser.add_class_arguments(Training, "retrain")
    parser.add_class_arguments(Distillation, "distill")
    parser.add_class_arguments(Guards, "guards")
    parser.add_class_arguments(Checkpoints, "checkpoints")
    parser.add_class_arguments(Measure, "measure")
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.set_defaults({"finetune.epochs": 0, "search.lr_schedule": "constant"})
    return parser


def parse(parser: LightningArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parse a recipe and its overrides.

    Raises:
        ValueError: In one line, with the closest valid key where a key is unknown.
    """
    try:
        config = parser.parse_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ValueError(explain(parser, str(error))) from error
    except UnicodeError as error:
        raise ValueError(f"the recipe is no UTF-8 text: {error}; save it as UTF-8") from error
    except (ArithmeticError, AttributeError, LookupError) as error:  # what jsonargparse makes of odd values
        raise ValueError(f"the recipe holds a value that cannot be used: {error}") from error
    for section in SECTIONS:
        if not hasattr(config[section], "keys"):
            raise ValueError(f"{section} is {config[section]!r}; expected settings, as `upop fit --help` lists them")
    return config


def recipe_of(parser: LightningArgumentParser, config: Namespace) -> Recipe:
    """Instantiate a parsed recipe; reads no weights and no data."""
    import yaml

    from upop.callbacks import ProgressiveSearch
    from upop.runs import Recipe
    from upop.tasks import Training

    for settings in (config.search, config.data.get("init_args", {})):
        if "seed" in settings and settings["seed"] is None:
            settings["seed"] = config.seed_everything
    plain = yaml.safe_load(parser.dump(config, skip_unset=False, skip_link_targets=False))
    plain.pop("config", None)
    try:
        made = parser.instantiate(config)
    except (ValueError, TypeError) as error:
        raise type(error)(explain(parser, str(error))) from error

    def pick(cls: type) -> dict[str, Any]:
        return {name: made.search[name] for name in inspect.signature(cls).parameters}

    training = {"finetune": made.finetune, "search": Training(**pick(Training)), "retrain": made.retrain}
    search = ProgressiveSearch(**pick(ProgressiveSearch))
    return Recipe(
        made.model,
        made.data,
        search,
        training,
        made.distill,
        dict(made.trainer.as_dict()),
        made.seed_everything,
        plain,
        made.measure,
        made.guards,
        made.checkpoints,
    )
