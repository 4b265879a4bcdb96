"""The phases of a run, each an ordinary Lightning run with its own Trainer.

finetune makes the dense model good at the task, search makes the plan while it trains, the surgery cuts, retrain trains
the cut model. Each phase starts from the files of the one before and leaves a model directory behind, so a run goes on
wherever it stood: between phases from these files, within a phase from Lightning's last checkpoint. In a distributed
run every rank walks the phases; rank 0 alone writes, and the others wait for it before they read.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from upop.callbacks import ProgressiveSearch
from upop.cost import CostModel, measure
from upop.export import load, save
from upop.families import find_sites
from upop.files import write_atomic
from upop.runs.checkpoints import check_room
from upop.runs.contents import contents, difference
from upop.runs.directory import STATE, RunDirectory
from upop.runs.latency import latency_table, place
from upop.runs.recipe import Recipe
from upop.runs.strategies import check_placement, gathered
from upop.runs.supervision import supervised
from upop.runs.training import check_trainer, evaluate, new_trainer, train
from upop.search import check_settings
from upop.structure import Plan, Site
from upop.surgery import shrink_
from upop.tasks import Task

PHASES = ("finetune", "search", "retrain")
CARRIED = "carried.safetensors"
"""Name of the file, in the directory of a phase, of what its task carries to the next one."""
NEEDED = {
    "finetune": (("model",), ()),
    "search": (("model", "steps_left_out", "history"), ("dense", "cut")),
    "retrain": (("model",), ("retrained",)),
}
"""What a phase that is done has noted: facts of it, and evaluations."""
LATENCY = "latency.json"
"""Name of the table, in the directory of the search, that a search of ``latency`` selects by."""


def check(recipe: Recipe, directory: RunDirectory | None = None) -> None:
    """Check everything that needs no training: data files, checkpoint, whether the budget can be met.

    A budget of ``latency`` is measured for this, where no table of the run or the cache fits.

    Args:
        recipe: What to check.
        directory: Directory of the run, which may hold a latency table already.

    Raises:
        ValueError: With what is wrong and what to do.
        FileNotFoundError: If a file is missing.
    """
    for phase in ("search", "retrain"):
        if recipe.training[phase].epochs < 1:
            raise ValueError(f"{phase}.epochs is {recipe.training[phase].epochs}; give 1 or more")
    check_trainer(recipe.trainer, recipe.task.compile_towers)
    try:
        check_placement(new_trainer(recipe, [], Path.cwd()))
    except MisconfigurationException as error:
        raise ValueError(f"trainer: {error}") from error
    recipe.data.check()
    recipe.task.preflight()
    recipe.task.check_data(recipe.data)
    model, processor = recipe.start()
    if recipe.task.from_scratch and not recipe.finetunes:
        raise ValueError("model.from_scratch starts from random weights; give finetune.epochs of 1 or more")
    task = recipe.new_task(model, processor)
    if directory and not directory.done("search"):
        first = "finetune" if recipe.finetunes and not directory.done("finetune") else "search"
        check_room(first, directory.phase(first), task)
    own = directory.phase("search") / LATENCY if directory else None
    _bind(recipe, copy.deepcopy(recipe.search), model, Path("plan.json"), own)


def fit(recipe: Recipe, directory: RunDirectory, only: str | None = None) -> None:
    """Walk the phases of a run, from where its directory stands.

    Args:
        recipe: What to do.
        directory: Where; phases that are done there are skipped.
        only: Run this phase only; the ones before it have to be done.

    Raises:
        ValueError: If ``only`` needs a phase that is not done.
        SystemExit: If a signal stops it; see :func:`~upop.runs.supervision.supervised`, also for other errors.
    """
    with supervised(directory.path):
        check(recipe, directory)
        _walk(recipe, directory, only)


def _walk(recipe: Recipe, directory: RunDirectory, only: str | None) -> None:
    """Go through the phases that are not done."""
    steps = {"finetune": _finetune, "search": _search, "retrain": _retrain}
    wanted = [phase for phase in PHASES if phase != "finetune" or recipe.finetunes]
    if only is not None and only not in wanted:
        raise ValueError(f"phase {only!r} is left out by this configuration: {only}.epochs is 0")
    _check_done(directory)
    for phase in wanted:
        if directory.done(phase):
            rank_zero_info(f"{phase}: done already, in {directory.phase(phase)}")
        elif only is None or only == phase:
            directory.begin()
            start = time.perf_counter()
            seed_everything(recipe.seed, workers=True, verbose=False)  # before random weights and the queue are drawn
            facts = steps[phase](recipe, directory)
            directory.finish(phase, {**facts, "seconds_last_attempt": round(time.perf_counter() - start, 1)})
            _wait_for_all_ranks()
        else:
            raise ValueError(
                f"phase {only!r} needs {phase!r}, which is not done in {str(directory.path / STATE)!r}; run it first"
            )
        if phase == only:
            return


def _check_done(directory: RunDirectory) -> None:
    """Refuse a state that lacks what later phases and the summary need of those that are done."""
    for phase, (facts, evaluations) in NEEDED.items():
        lacking = [fact for fact in facts if fact not in directory.facts(phase)]
        lacking += [name for name in evaluations if directory.evaluation(name) is None]
        if directory.done(phase) and lacking:
            raise ValueError(
                f"{str(directory.path / STATE)!r} says that {phase} is done, but lacks its {lacking}; delete the run "
                "directory to start again"
            )


def _wait_for_all_ranks() -> None:
    """Wait until every rank is here, so that none reads what rank 0 is still writing."""
    ranks = torch.distributed
    if ranks.is_available() and ranks.is_initialized():
        ranks.barrier(device_ids=[torch.cuda.current_device()] if ranks.get_backend() == "nccl" else None)


def _finetune(recipe: Recipe, directory: RunDirectory) -> dict[str, Any]:
    model, processor = recipe.start()
    task = recipe.new_task(model, processor, "finetune")
    train(recipe, directory, "finetune", task, [])
    task = gathered(task, lambda: recipe.new_task(*recipe.start(), "finetune"))
    carried = _save_carried(task.carried(), directory.phase("finetune"))
    _save(task.model, processor, directory.phase("finetune") / "model")
    return {"model": "finetune/model", **carried}


def dense_checkpoint(recipe: Recipe, directory: RunDirectory) -> str:
    """The dense model that the search starts from and that the result is compared with."""
    return str(directory.phase("finetune") / "model") if recipe.finetunes else recipe.task.checkpoint


def _search(recipe: Recipe, directory: RunDirectory) -> dict[str, Any]:
    source = dense_checkpoint(recipe, directory)
    model, processor = load(source)
    task = recipe.new_task(model, processor, "search")
    task.carry(_carried(directory, "finetune", task))
    if directory.evaluation("dense") is None:
        directory.note_evaluation("dense", evaluate(recipe, task))
    search = copy.deepcopy(recipe.search)
    own = directory.phase("search") / LATENCY
    sites, cost = _bind(recipe, search, model, directory.path / "plan.json", own)
    if cost.latency and not own.is_file():
        cost.latency.save(own)
    _distil(recipe, task, source)
    train(recipe, directory, "search", task, [search])
    plan = search.plan
    if plan is None or not search.finished:
        raise ValueError("the search did not reach its last step; run the same command again to go on")
    if not (directory.path / "plan.json").is_file():  # killed after the last checkpoint, before the plan was written
        rank_zero_only(plan.save)(directory.path / "plan.json")
    task = gathered(task, lambda: recipe.new_task(*load(source), "search"))
    for module in task.pruned_modules():
        shrink_(module, sites, plan)
    directory.note_evaluation("cut", evaluate(recipe, task))
    carried = _save_carried(task.carried(), directory.phase("search"))
    facts = {"source": source, "params": cost.remaining(plan.kept(), "params")}
    _save(task.model, processor, directory.phase("search") / "compressed", plan, search.units, facts)
    return {"model": "search/compressed", "steps_left_out": search.left_out, "history": search.history, **carried}


def _retrain(recipe: Recipe, directory: RunDirectory) -> dict[str, Any]:
    model, processor = load(directory.phase("search") / "compressed")
    task = recipe.new_task(model, processor, "retrain")
    task.carry(_carried(directory, "search", task))
    _distil(recipe, task, dense_checkpoint(recipe, directory))
    train(recipe, directory, "retrain", task, [])
    task = gathered(task, lambda: recipe.new_task(*load(directory.phase("search") / "compressed"), "retrain"))
    metrics = evaluate(recipe, task)
    directory.note_evaluation("retrained", metrics)
    facts = {"source": recipe.task.checkpoint, "metrics": metrics, "dense_metrics": directory.evaluation("dense")}
    plan = Plan.load(directory.path / "plan.json")
    _save(task.model, processor, directory.path / "compressed", plan, recipe.search.units, facts)
    return {"model": "compressed"}


def _bind(
    recipe: Recipe, search: ProgressiveSearch, model: nn.Module, plan_path: Path, own: Path | None
) -> tuple[list[Site], CostModel]:
    """Tell the search what it searches; ``own`` is where the run keeps its latency table, if it has one."""
    sites = find_sites(model, search.units)
    check_settings(search.budget, sites)
    inputs = recipe.sample(model)
    cost = CostModel(sites, measure(model, sites, inputs))
    device = torch.device("cpu")
    if search.auto or search.budget.of == "latency":
        device = place(search.latency, new_trainer(recipe, [], Path.cwd()).strategy.root_device)
    if search.budget.of == "latency":
        _check_begun(own)
    if search.budget.of == "latency" and rank_zero_only.rank == 0:  # the others get what rank 0 has found
        multiple_of = search.multiples(sites, device.type)
        cost = cost.with_latency(latency_table(model, sites, inputs, search.latency, device, multiple_of, own))
    search.bind(sites, cost, plan_path, device.type)
    return sites, cost


def _check_begun(own: Path | None) -> None:
    """Refuse to measure anew for a search that has begun with other times."""
    last = own.parent / "checkpoints" / "last.ckpt" if own else None
    if own and last and last.is_file() and not own.is_file():
        raise FileNotFoundError(
            f"{str(own)!r} is missing, by which the search of {str(last)!r} selects; put it back, or delete "
            f"{str(last)!r}, too, to start the phase again"
        )


def _distil(recipe: Recipe, task: Task, source: str) -> None:
    if recipe.distillation.on:
        teacher, _ = load(source)
        task.learn_from(teacher, recipe.distillation)


_save = rank_zero_only(save)


def _save_carried(state: Mapping[str, Tensor], folder: Path) -> dict[str, str]:
    """Keep what the task carries to the next phase; what to note of it, on every rank the same."""
    if not state:
        return {}
    _write_carried(state, folder / CARRIED)
    _wait_for_all_ranks()
    return {"carried": _checksum(folder / CARRIED)}


@rank_zero_only
def _write_carried(state: Mapping[str, Tensor], file: Path) -> None:
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    write_atomic(file, lambda path: save_file(tensors, path))


def _carried(directory: RunDirectory, phase: str, task: Task) -> dict[str, Tensor]:
    """What a phase has left for the next one.

    Raises:
        FileNotFoundError: If it has left something that is not there.
        ValueError: If the file is damaged, or of another model.
    """
    file, again = directory.phase(phase) / CARRIED, "delete the run directory to start again"
    if not file.is_file():
        if directory.done(phase) and task.carried():
            raise FileNotFoundError(f"{str(file)!r} is missing, which {phase} has left for the next phase; {again}")
        return {}
    try:
        state = load_file(file)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"{str(file)!r} cannot be read as safetensors: {error}; {again}") from error
    noted = directory.facts(phase).get("carried")
    if noted is not None and noted != _checksum(file):
        raise ValueError(f"{str(file)!r} is not what {phase} has left: its checksum is another; {again}")
    fault = difference(contents(task.carried(), "state"), contents(state, "state"), "this run carries")
    if fault:
        raise ValueError(f"{str(file)!r} is of another model: {fault}; {again}")
    return state


def _checksum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
