"""The end of a run: what it cost, what it gave, and where the files are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from upop import __version__
from upop.cost import CostModel, LatencyTable, Share, measure
from upop.export import load
from upop.families import find_sites
from upop.files import write_json, write_text
from upop.report import allocation, comparison, console, removed_table, render, search_curve
from upop.report.facts import BY
from upop.report.tables import latency_table
from upop.runs.bench_conditions import device_name
from upop.runs.directory import RunDirectory
from upop.runs.measuring import time_models
from upop.runs.phases import LATENCY, PHASES, dense_checkpoint
from upop.runs.recipe import Recipe
from upop.runs.timing import Speed, compare_speed
from upop.search import Price
from upop.structure import Plan, Site

SUMMARY_FORMAT = 2
REPORT = "report.html"
"""Name of the page that :mod:`upop.runs.reporting` writes of a run."""


def summarise(recipe: Recipe, directory: RunDirectory) -> dict[str, Any]:
    """Measure dense and compressed model side by side, write summary.json and the pictures, print the tables.

    Args:
        recipe: What was run.
        directory: Where; all phases are done.

    Returns:
        What summary.json holds.
    """
    dense, processor = load(dense_checkpoint(recipe, directory))
    cut, _ = load(directory.path / "compressed")
    plan = Plan.load(directory.path / "plan.json")
    sites = find_sites(dense, recipe.search.units)
    recipe.data.set_processor(processor)
    inputs = recipe.sample(dense)
    table = directory.phase("search") / LATENCY
    times = LatencyTable.load(table) if table.is_file() else None
    cost = CostModel(sites, measure(dense, sites, inputs), times)
    on_cpu = recipe.trainer.get("accelerator") == "cpu" or not torch.cuda.is_available()
    device = torch.device("cpu" if on_cpu else "cuda")
    speed = compare_speed(
        {"dense": dense.to(device), "compressed": cut.to(device)},
        inputs,
        recipe.measure.batch_size,
        recipe.measure.seconds,
    )
    latency = _latency(recipe, inputs, cost, plan, {"dense": dense, "compressed": cut}) if times else None
    states = _states(directory, cost, plan, speed)
    allocation(directory.path / "allocation.png", sites, plan)
    budget = recipe.search.budget
    target = budget.target(cost) / cost.prunable(budget.of)
    search_curve(directory.path / "search.png", directory.facts("search")["history"], target)
    shares = cost.shares(plan.kept())
    names = {"task": type(recipe.task).__name__, "data": type(recipe.data).__name__}
    summary = {
        "format": SUMMARY_FORMAT,
        "upop": __version__,
        "recipe": {**names, "checkpoint": recipe.task.checkpoint, "seed": recipe.seed},
        "states": dict(states),
        "speed": {name: asdict(found) for name, found in speed.items()},
        **({"latency": latency} if latency else {}),
        "removed": [asdict(share) for share in shares],
        "sites": _sites(sites, plan),
        "search": {"target": target, "facts": dict(plan.facts), "history": directory.facts("search")["history"]},
        "steps_left_out": directory.facts("search").get("steps_left_out", 0),
        "seconds_last_attempt": {phase: directory.facts(phase).get("seconds_last_attempt") for phase in PHASES},
        "files": _files(directory.path),
    }
    write_json(directory.path / "summary.json", summary)
    _show(directory.path, [removed_table(shares), comparison(states)], summary)
    return summary


def _show(path: Path, tables: list[Table], summary: Mapping[str, Any]) -> None:
    """Print the tables, and what a reader has to know of them, and write them to summary.txt."""
    found, latency, facts = summary["speed"]["dense"], summary.get("latency"), summary["search"]["facts"]
    notes = [
        f"latency of a batch of {found['batch_size']} on {found['device']}, median of {found['rounds']}, side by side"
    ]
    if latency:
        times = [(latency[by]["dense_ms"], latency[by]["compressed_ms"]) for by in BY]
        tables = [*tables, latency_table([Share(**share) for share in summary["removed"]], *times)]
        notes.append(_latency_note(latency))
    if "alignment" in facts:
        notes.append(Price(**facts["alignment"]).line())
    write_text(path / "summary.txt", "\n".join([*map(render, tables), *notes, ""]))
    out = console()
    for part in (*tables, *notes, _file_table(summary["files"])):
        out.print(part)


def _latency(
    recipe: Recipe, inputs: Mapping[str, Tensor], cost: CostModel, plan: Plan, models: Mapping[str, nn.Module]
) -> dict[str, Any]:
    """What the table foretold of the cut, and what the cut model takes; moves the models."""
    assert cost.latency is not None
    kind = cost.latency.setting.get("type")
    device = torch.device("cuda" if kind == "cuda" and torch.cuda.is_available() else "cpu")
    seconds = time_models(models, inputs, recipe.search.latency, device)
    predicted = {"dense": cost.whole("latency") / 1e9, "compressed": cost.remaining(plan.kept(), "latency") / 1e9}
    found: dict[str, Any] = {"table": dict(cost.latency.setting), "device": device_name(device)}
    for by, times in zip(BY, (predicted, seconds), strict=True):
        found[by] = {f"{name}_ms": 1000 * times[name] for name in models}
        found[by]["removed"] = 1 - times["compressed"] / times["dense"]
    return found


def _latency_note(latency: Mapping[str, Any]) -> str:
    """How the latency budget was predicted and measured, in one line."""
    table, device = latency["table"], latency["device"]
    elsewhere = "" if device == table["device"] else f", the cut model measured on {device}"
    return (
        f"latency budget: a batch of {table['batch_size']} in {table['dtype']} on {table['device']}{elsewhere}, the "
        "fastest of some passes"
    )


def _states(
    directory: RunDirectory, cost: CostModel, plan: Plan, speed: Mapping[str, Speed]
) -> list[tuple[str, dict[str, float]]]:
    """Sizes, speed and metrics of the dense, the cut and the retrained model."""
    kept = plan.kept()
    states = []
    for name, label in (("dense", "dense"), ("cut", "cut"), ("retrained", "retrained")):
        facts: dict[str, float] = {
            "params": cost.whole("params") if name == "dense" else cost.remaining(kept, "params"),
            "flops": cost.whole("flops") if name == "dense" else cost.remaining(kept, "flops"),
        }
        if name != "cut":
            measured = speed["dense" if name == "dense" else "compressed"]
            facts |= {"latency_ms": measured.latency_ms, "samples_per_s": measured.throughput}
        states.append((label, facts | (directory.evaluation(name) or {})))
    return states


def _sites(sites: Sequence[Site], plan: Plan) -> list[dict[str, Any]]:
    """What is kept at each site, for a reader who has no model at hand."""
    kept = plan.kept()
    return [
        {
            "name": site.name,
            "kind": site.kind,
            "modality": site.modality,
            "depth": site.depth,
            "units": site.units,
            "units_kept": kept.get(site.name, site.units),
        }
        for site in sites
    ]


def _files(path: Path) -> dict[str, str]:
    names = {
        "compressed model": "compressed",
        "plan": "plan.json",
        "summary": "summary.json",
        "tables": "summary.txt",
        "report": REPORT,
        "what is kept where": "allocation.png",
        "the search over time": "search.png",
        "configuration": "config.yaml",
    }
    return {what: str(path / name) for what, name in names.items()}


def _file_table(files: Mapping[str, str]) -> Table:
    table = Table("file", "where")
    for what, where in files.items():
        table.add_row(what, where)
    return table
