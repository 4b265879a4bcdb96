"""How one phase trains and is evaluated: the Trainer of a recipe, and the checkpoints that a phase goes on from."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_info

from upop.callbacks import NONFINITE, DataState, ProgressiveSearch, RandomState, SearchWatch, StepCheckpoint, StepGuard
from upop.runs.checkpoints import Checkpoints, check_room
from upop.runs.contents import Contents, check_whole
from upop.runs.directory import RunDirectory
from upop.runs.recipe import Recipe
from upop.runs.signals import Signals, StopBetweenSteps
from upop.runs.strategies import check_strategy, for_evaluation, for_training
from upop.runs.supervision import Watch, current_signals, supervise
from upop.tasks import Task

OWN = {
    "max_epochs": "set finetune.epochs, search.epochs and retrain.epochs",
    "default_root_dir": "set run_dir",
    "num_sanity_val_steps": "leave it out: recalls need the whole split",
}
"""Trainer arguments that follow from other keys, and what to do instead."""


def check_trainer(settings: Mapping[str, Any], compiles: bool = False) -> None:
    """Refuse what upop sets itself and what it does not serve, rather than ignore it.

    Args:
        settings: Keyword arguments of the Trainer, as the recipe gives them.
        compiles: Whether the task compiles its towers.

    Raises:
        ValueError: With what to do instead.
    """
    for key, advice in OWN.items():
        if settings.get(key) is not None:
            raise ValueError(f"trainer.{key} is {settings[key]!r}, but upop sets it; {advice}")
    if settings.get("enable_checkpointing") is False:
        raise ValueError("trainer.enable_checkpointing is False, but a run has to be resumable; leave it out")
    precision = str(settings.get("precision") or "32-true")
    if precision.endswith("-true") and not precision.startswith("32"):
        raise ValueError(f"trainer.precision is {precision!r}, but weights stay in fp32; give bf16-mixed or 16-mixed")
    check_strategy(settings, compiles)


def train(recipe: Recipe, directory: RunDirectory, phase: str, task: Task, callbacks: list[Callback]) -> None:
    """Train one phase, from its last checkpoint where there is one.

    Args:
        recipe: How it trains.
        directory: Of the run.
        phase: Name of the phase.
        task: Task with the model that trains.
        callbacks: What the phase needs besides checkpoints.

    Raises:
        ValueError: If the checkpoint cannot be gone on from, or there is no room for the next.
        KeyboardInterrupt: If the user stopped it.
        Stopped: If a signal did.
    """
    settings = recipe.training[phase]
    rank_zero_info(f"{phase}: {settings.epochs} epochs")
    seed_everything(recipe.seed, workers=True, verbose=False)
    folder = directory.phase(phase)
    last = folder / "checkpoints" / "last.ckpt"
    check_room(phase, folder, task)
    signals = current_signals()
    callbacks = [*callbacks, *_guards(recipe, phase, folder, callbacks)]
    callbacks = [*_checkpoints(last, recipe.checkpoints, signals), *callbacks]
    trainer = new_trainer(recipe, callbacks, folder, max_epochs=settings.epochs)
    if last.is_file():
        rank_zero_info(f"{phase}: going on from {last}")
        check_whole(last, task)
    resume = str(last) if last.is_file() else None
    try:
        with signals.training():
            trainer.fit(task, datamodule=recipe.data, ckpt_path=resume, weights_only=True)
    except SystemExit as stop:  # Lightning's answer to Ctrl-C
        if trainer.interrupted:
            raise KeyboardInterrupt from stop
        raise


def _guards(recipe: Recipe, phase: str, folder: Path, callbacks: list[Callback]) -> list[Callback]:
    """What guards a phase; after the search, whose updates they judge."""
    searches = [callback for callback in callbacks if isinstance(callback, ProgressiveSearch)]
    guard = StepGuard(recipe.guards.stop_after, phase, folder / NONFINITE)
    return [guard, *(SearchWatch(recipe.guards, search) for search in searches)]


def _checkpoints(last: Path, settings: Checkpoints, signals: Signals) -> list[Callback]:
    """One file to go on from, rewritten after each epoch, every few minutes within one, and at a signal."""
    within = timedelta(minutes=settings.every_minutes)
    clocks: list[dict[str, Any]] = [{"every_n_epochs": 1}, {"train_time_interval": within}]
    kept = [StepCheckpoint(last.parent, last.stem, enable_version_counter=False, **clock) for clock in clocks]
    return [RandomState(), DataState(), Contents(), StopBetweenSteps(signals, last), *kept]


def new_trainer(recipe: Recipe, callbacks: list[Callback], folder: Path, **arguments: Any) -> Trainer:  # noqa: ANN401
    """A Trainer as the recipe wants it, with what a phase needs on top.

    Args:
        recipe: The recipe.
        callbacks: Callbacks before those of the recipe.
        folder: Where logs go.
        arguments: Of the Trainer; they win over the recipe's.
    """
    own = {key: copy.deepcopy(value) for key, value in recipe.trainer.items() if value is not None}
    extra = own.pop("callbacks", None) or []
    extra = list(extra) if isinstance(extra, (list, tuple)) else [extra]
    own.setdefault("logger", CSVLogger(folder, name="logs"))
    own.update(arguments)
    own["strategy"] = for_training(own.get("strategy", "auto"))
    own.setdefault("enable_model_summary", False)  # the summary of a run says more
    own.update(default_root_dir=str(folder), num_sanity_val_steps=0, use_distributed_sampler=False)
    return supervise(Trainer(callbacks=[Watch(), *callbacks, *extra], **own))


def evaluate(recipe: Recipe, task: Task) -> dict[str, float]:
    """Metrics of the test split, by name, of a whole model on each rank.

    In fp32 whatever the training uses, so that states compare to the digit.
    """
    kept = {key: value for key, value in recipe.trainer.items() if key not in ("callbacks", "logger", "max_epochs")}
    bare = copy.copy(recipe)
    bare.trainer = kept | {"precision": "32-true", "logger": False, "enable_checkpointing": False}
    bare.trainer["strategy"] = for_evaluation(kept.get("strategy"))
    training = task.training
    task.eval()
    with tempfile.TemporaryDirectory() as empty:  # on a cluster Lightning would load a checkpoint that lies there
        results = new_trainer(bare, [], Path(empty)).test(task, datamodule=recipe.data, verbose=False)
    task.train(training)
    return {name.removeprefix("test/"): float(value) for result in results for name, value in result.items()}
