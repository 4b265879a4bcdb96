"""Evaluate one model on a recipe's test split: dense, masked or compressed."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from upop.export import load
from upop.export.directory import plan_of
from upop.families import find_sites
from upop.masks import Masks, mask_values
from upop.report import comparison, console
from upop.runs.recipe import Recipe
from upop.runs.training import evaluate
from upop.structure import Plan


def default_checkpoint(recipe: Recipe, run_dir: Path, dense: bool) -> str:
    """What a run has to show: its compressed model, else its fine-tuned one, else the checkpoint it starts from.

    Args:
        recipe: The run.
        run_dir: Its directory.
        dense: Take the dense model although there is a compressed one.

    Raises:
        ValueError: If it has nothing to show.
    """
    compressed, finetuned = run_dir / "compressed", run_dir / "finetune" / "model"
    if compressed.is_dir() and not dense:
        return str(compressed)
    if finetuned.is_dir():
        return str(finetuned)
    if recipe.task.from_scratch:
        raise ValueError(
            f"no model in run directory {str(run_dir)!r}, and the recipe starts from random weights; `upop fit` makes "
            "one, or give --checkpoint"
        )
    return recipe.task.checkpoint


def evaluate_checkpoint(recipe: Recipe, checkpoint: str | None = None, plan: str | None = None) -> dict[str, float]:
    """Evaluate a checkpoint and print its metrics.

    Args:
        recipe: Task and data.
        checkpoint: Model directory; by default the recipe's dense checkpoint.
        plan: A plan file: the dense checkpoint is evaluated with these masks on, uncut.

    Returns:
        Metrics by name.

    Raises:
        ValueError: If ``plan`` does not fit the model, or the model is compressed already.
    """
    recipe.data.check()
    checkpoint = checkpoint or recipe.task.checkpoint
    loaded = Plan.load(plan) if plan else None
    if loaded and plan_of(checkpoint):
        raise ValueError(f"{checkpoint!r} is compressed already; give --plan with the dense checkpoint it was made for")
    model, processor = load(checkpoint)
    task = recipe.new_task(model, processor)
    masks = None
    if loaded:
        sites = find_sites(model, loaded.kinds())
        loaded.check(sites)
        masks = Masks(model, sites)
        masks.write_(mask_values(sites, loaded))
    metrics = evaluate(recipe, task)
    if masks:
        masks.detach()
    table = comparison([(checkpoint + (" (masked)" if masks else ""), metrics)])
    rank_zero_only(console().print)(table)
    return metrics
