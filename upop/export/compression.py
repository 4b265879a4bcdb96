"""The part of config.json that tells of a compression: what was kept of each site.

The plan lives here and nowhere else in a directory: config.json is what every loader reads, upop's and transformers'
alike, and what ``save_pretrained`` writes again, so the plan goes wherever the weights go and there is no second file
to contradict it. Units are written as numbers and ranges (``"0-3,7"``), which keeps a site of thousands on one line.

Directories of older versions hold the plan in compression.json (format 1), beside a config.json that says nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from upop import __version__
from upop.export.modeling_upop import COMPRESSION_FORMAT
from upop.structure import KINDS, PLAN_FORMAT, Kind, Plan

CONFIG = "config.json"
KEY = "compression"
OLD = "compression.json"
OLD_FORMAT = 1
PARTS = ("kinds", "model", "units", "keep")
MOST_UNITS = 2**20
"""Units of a site: a short text such as ``"0-9999999999"`` is not to fill the memory."""


def ranges(units: Iterable[int]) -> str:
    """Ascending numbers as text.

    >>> ranges([0, 1, 2, 5, 7, 8])
    '0-2,5,7-8'
    """
    runs: list[list[int]] = []
    for unit in units:
        if runs and unit == runs[-1][1] + 1:
            runs[-1][1] = unit
        else:
            runs.append([unit, unit])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def numbers(text: str) -> list[int]:
    """The numbers that :func:`ranges` wrote.

    >>> numbers("0-2,5")
    [0, 1, 2, 5]

    Raises:
        ValueError: If it is anything else.
    """
    if not isinstance(text, str) or not re.fullmatch(r"[0-9]{1,9}(-[0-9]{1,9})?(,[0-9]{1,9}(-[0-9]{1,9})?)*", text):
        raise ValueError(f"{text!r} is no list of numbers and ranges; expected one such as '0-3,7'")
    ends = [[int(end) for end in part.split("-")] for part in text.split(",")]
    bounds = [end for pair in ends for end in dict.fromkeys(pair)]
    if bounds != sorted(set(bounds)) or bounds[-1] >= MOST_UNITS:
        raise ValueError(f"{text!r} is not ascending, or goes on to {MOST_UNITS} and more")
    return [unit for end in ends for unit in range(end[0], end[-1] + 1)]


def block(plan: Plan, kinds: Sequence[Kind], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says under ``compression``.

    Args:
        plan: What the model was cut by.
        kinds: Unit kinds that it is about.
        facts: What a reader wants to know; not read back.
    """
    return {
        "format": COMPRESSION_FORMAT,
        "upop": __version__,
        "kinds": list(kinds),
        "model": plan.model,
        "units": dict(plan.units),
        "keep": {name: ranges(units) for name, units in plan.keep.items()},
        "search": dict(plan.facts),
        "facts": dict(facts),
    }


def plan_of(directory: str | Path) -> tuple[Plan, list[Kind]] | None:
    """The plan and the unit kinds of a compressed directory; ``None`` for a dense checkpoint.

    Raises:
        ValueError: If what it says of its compression is incomplete, of another format, no plan, or said twice.
    """
    path = Path(directory)
    new, old = _json(path / CONFIG).get(KEY), path / OLD
    if new is not None and old.is_file():
        raise ValueError(f"{str(path)!r} has a plan in {CONFIG} and another in {OLD}; delete the one that is stale")
    if new is not None:
        return _plan(f"{str(path / CONFIG)!r}", new)
    return _old_plan(old) if old.is_file() else None


def _json(file: Path) -> dict[str, Any]:
    """A config.json as far as it can be read; who loads the model tells what is wrong with the rest."""
    try:
        content = json.loads(file.read_bytes()) if file.is_file() else {}
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _plan(file: str, content: Any) -> tuple[Plan, list[Kind]]:  # noqa: ANN401 (anything that JSON can hold)
    """The plan that :func:`block` wrote."""
    found = content.get("format") if isinstance(content, dict) else type(content).__name__
    if found != COMPRESSION_FORMAT:
        raise ValueError(f"{file} has compression format {found!r}; this version reads format {COMPRESSION_FORMAT}")
    missing = [key for key in PARTS if key not in content]
    if missing:
        raise ValueError(f"compression in {file} lacks {missing}; is it complete?")
    if not all(isinstance(content[key], dict) for key in ("units", "keep")):
        raise ValueError(f"'units' and 'keep' of the compression in {file} are mappings from site names")
    keep = {}
    for site, units in content["keep"].items():
        try:
            keep[site] = numbers(units)
        except ValueError as error:
            raise ValueError(f"units kept at site {site!r} in {file}: {error}") from error
    facts = content.get("search") or {}
    plan = {"format": PLAN_FORMAT, "model": content["model"], "facts": facts, "units": content["units"], "keep": keep}
    return _checked(file, plan, content["kinds"])


def _old_plan(file: Path) -> tuple[Plan, list[Kind]]:
    """The plan in a compression.json."""
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(file)!r} is not JSON: {error}") from error
    found = content.get("format") if isinstance(content, dict) else type(content).__name__
    if found != OLD_FORMAT:
        raise ValueError(f"{str(file)!r} has format {found!r}; this version reads format {OLD_FORMAT}")
    missing = [key for key in ("plan", "kinds") if key not in content]
    if missing:
        raise ValueError(f"{str(file)!r} lacks {missing}; is it complete?")
    return _checked(f"{str(file)!r}", content["plan"], content["kinds"])


def _checked(file: str, plan: Any, kinds: Any) -> tuple[Plan, list[Kind]]:  # noqa: ANN401 (anything that JSON can hold)
    """What a file says, in types."""
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise ValueError(f"'kinds' of the compression in {file} is {kinds!r}; expected some of {list(KINDS)}")
    try:
        return Plan.from_dict(plan), kinds
    except ValueError as error:
        raise ValueError(f"compression in {file}: {error}") from error
