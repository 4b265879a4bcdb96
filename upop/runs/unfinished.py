"""What there is of a run that is not finished.

It is read from its config.yaml, state.json and plan.json and from the log of the phase under way. Nothing is computed
that the summary would say otherwise: sizes are the plan's own, and what is not known is left out. No weights are read,
and no hub is asked.
"""

from __future__ import annotations

import csv
import io
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import yaml

from upop.families import build_dense, find_sites
from upop.report.facts import LAST, Run, Unfinished
from upop.report.paths import stack
from upop.runs.directory import flatten, read_state
from upop.runs.phases import PHASES
from upop.structure import CURRENCIES, Plan

CONFIG, PLAN = "config.yaml", "plan.json"
CHECKPOINT = "model.init_args.checkpoint"
UPDATE = "removed/"
COUNTS = ("steps_left_out", "units_returned")
"""What the search logs at an update: fractions whose names begin so, and counts."""
FILES = {
    "configuration": CONFIG,
    "state": "state.json",
    "dense model": "finetune/model",
    "plan": PLAN,
    "cut model": "search/compressed",
    "compressed model": "compressed",
}


def so_far(path: Path, name: str) -> Run:
    """What there is of a run that is not finished.

    Raises:
        ValueError: If the directory is no run's, or its configuration, state or plan cannot be read.
    """
    config, state = _config(path), read_state(path)
    plan = Plan.load(path / PLAN) if (path / PLAN).is_file() else None
    facts = {key[7:]: value for key, value in config.items() if key.startswith("search.") and value is not None}
    facts |= plan.facts if plan else {}
    removed, searched = facts.get("removed"), state["phases"].get("search", {})
    known = isinstance(removed, (int, float)) and facts.get("scope") == "prunable"
    told = {
        "upop": "",
        "recipe": _recipe(config),
        "states": _states(state["evaluations"], plan),
        "speed": {},
        "removed": [],
        "sites": _sites(path, config, plan) if plan else [],
        "search": {
            "target": removed if known else None,
            "facts": facts,
            "history": searched["history"] if "history" in searched else logged_updates(path / "search"),
        },
        "seconds_last_attempt": {phase: state["phases"].get(phase, {}).get("seconds_last_attempt") for phase in PHASES},
        "files": {what: path / file for what, file in FILES.items() if (path / file).exists()},
    }
    try:
        return Run.of(told, name, _unfinished(path, config, list(state["phases"])))
    except ValueError as error:
        raise ValueError(f"run directory {str(path)!r} cannot be reported: {error}") from error


def _config(path: Path) -> dict[str, Any]:
    """The resolved configuration of a run, as one level of dotted keys.

    Raises:
        ValueError: If there is none, or it is not one that a run wrote.
    """
    file = path / CONFIG
    if not file.is_file():
        raise ValueError(f"{str(path)!r} is no run directory: it has no {CONFIG}; give one that `upop fit` has written")
    try:
        config = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(file)!r} is not YAML: {' '.join(str(error).split())}") from error
    flat = flatten(config) if isinstance(config, dict) else {}
    lacking = [key for key in ("model.class_path", "data.class_path", "search.policy") if key not in flat]
    if lacking:
        raise ValueError(f"{str(file)!r} is no configuration of a run: it lacks {lacking}; `upop fit` writes one")
    return flat


def _recipe(config: Mapping[str, Any]) -> dict[str, Any]:
    """What was to be run, as a summary says it."""
    task, data = (str(config[f"{part}.class_path"]).rpartition(".")[2] for part in ("model", "data"))
    rest = {"checkpoint": config.get(CHECKPOINT), "seed": config.get("seed_everything")}
    return {"task": task, "data": data} | {what: value for what, value in rest.items() if value is not None}


def _unfinished(path: Path, config: Mapping[str, Any], done: Sequence[str]) -> Unfinished:
    """How far a run got; the summary is the last thing that it writes."""
    wanted = [phase for phase in PHASES if phase != "finetune" or config.get("finetune.epochs")]
    left = [phase for phase in [*wanted, "summary"] if phase not in done]
    words = dict.fromkeys(wanted, "done") | dict.fromkeys(left, "to come") | {left[0]: "next"}
    if (path / left[0]).is_dir():
        last = max(_log(path / left[0]), default=None)
        words[left[0]] = "begun" + (f", optimizer step {last:,} is the last in its log" if last else "")
    return Unfinished(words, f"upop fit --config {shlex.quote(str(path / CONFIG))}")


def _states(evaluations: Mapping[str, Mapping[str, float]], plan: Plan | None) -> dict[str, dict[str, float]]:
    """Metrics of the states that were measured, with the sizes that the plan notes."""
    states: dict[str, dict[str, float]] = {}
    for state in ("dense", "cut", LAST):
        noted = {size: plan.facts.get(size) for size in CURRENCIES} if plan else {}
        facts = {
            size: found["dense" if state == "dense" else "left"]
            for size, found in noted.items()
            if isinstance(found, dict) and {"dense", "left"} <= set(found)
        }
        if state in evaluations or (facts and state != LAST):
            states[state] = facts | dict(evaluations.get(state, {}))
    return states


def _sites(path: Path, config: Mapping[str, Any], plan: Plan) -> list[dict[str, Any]]:
    """What the plan keeps at each site, in the order of the model where its architecture is at hand.

    Where it is not (it lies elsewhere, or on a hub), towers go by the names of their modules.
    """
    kept = plan.kept()
    places = _places(path, config, plan) or _named(list(kept))
    return [
        {
            "name": name,
            "kind": name.rpartition(".")[2],
            "modality": modality,
            "depth": depth,
            "units": plan.units[name],
            "units_kept": kept[name],
        }
        for name, (modality, depth) in places.items()
        if name in kept
    ]


def _named(names: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Part of the model and layer of each site by its name; one without a number closes the stack of its part."""
    depths = {name: int(found[-1]) for name in names if (found := re.findall(r"\.(\d+)(?=\.)", name))}
    last = {part: max(depths[name] for name in depths if stack(name) == part) for part in map(stack, depths)}
    return {name: (stack(name), depths.get(name, last.get(stack(name), -1) + 1)) for name in names}


def _places(path: Path, config: Mapping[str, Any], plan: Plan) -> dict[str, tuple[str, int]] | None:
    """Tower and layer of each site, from the dense architecture, built without weights; ``None`` if none is at hand."""
    own = [str(path / "search" / "compressed"), str(path / "finetune" / "model")]
    for source in [*own, str(config.get(CHECKPOINT, ""))]:
        if source.startswith("timm/") or Path(source, "config.json").is_file():
            with suppress(OSError, ValueError, TypeError, KeyError):
                with torch.device("meta"):
                    model = build_dense(source)
                sites = find_sites(model, plan.kinds())
                if set(plan.keep) <= {site.name for site in sites}:
                    return {site.name: (site.modality, site.depth) for site in sites}
    return None


def logged_updates(folder: Path) -> list[dict[str, float]]:
    """The updates in the log of a search, each with the mean of the losses logged since the one before.

    Args:
        folder: Directory of the search.

    Returns:
        What state.json has as ``history`` once the search is done, as far as it was logged.
    """
    history: list[dict[str, float]] = []
    losses: list[float] = []
    for done, row in sorted(_log(folder).items()):
        losses += [row["loss"]] if "loss" in row else []
        if any(key.startswith(UPDATE) for key in row):
            facts = {key: value for key, value in row.items() if key.startswith(UPDATE) or key in COUNTS}
            history.append({"step": float(done), **facts} | ({"loss": fmean(losses)} if losses else {}))
            losses = []
    return history


def _log(folder: Path) -> dict[int, dict[str, float]]:
    """What a phase logged as CSV, by the number of optimizer steps done.

    Each attempt has a file of its own; one that went on from a checkpoint repeats the steps behind it, and counts.
    """
    log: dict[int, dict[str, float]] = {}
    attempts = [file for file in folder.glob("logs/version_*/metrics.csv") if file.parent.name[8:].isdigit()]
    for file in sorted(attempts, key=lambda one: int(one.parent.name[8:])):
        attempt: dict[int, dict[str, float]] = {}
        for row in _rows(file):
            at = int(row.pop("step"))
            done = at if any(key.startswith(UPDATE) for key in row) else at + 1  # Lightning counts steps from 0
            attempt.setdefault(done, {}).update(row)
        first = min(attempt, default=math.inf)
        log = {done: row for done, row in log.items() if done < first} | attempt
    return log


def _rows(file: Path) -> Iterator[dict[str, float]]:
    """The numbers in the rows of a metrics.csv that have a step; a last line that is still being written is none."""
    text = file.read_bytes().decode(errors="replace")
    with suppress(csv.Error):
        for row in csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])):
            found = {}
            for key, cell in row.items():
                with suppress(ValueError, TypeError):
                    found[key] = float(cell)
            if math.isfinite(found.get("step", math.nan)):
                yield found
