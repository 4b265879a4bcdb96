"""Errors of libraries in one line, with the closest valid name where one is unknown."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch.cli import LightningArgumentParser

UNKNOWN_KEY = re.compile(
    r"does not accept option '([\w.]+)'|Option '([\w.]+)' is not accepted|unrecognized arguments: --([\w.]+)"
)
UNKNOWN_CLASS = re.compile(r"has no attribute '(\w+)'")
UNION = re.compile(
    r"Does not validate against any of the Union subtypes Subtypes: \[.*?\] Errors: - (?P<errors>.*?)"
    r"(?: Given value type: .*? Given value: (?P<given>.*))?$"
)
IN_WORKER = re.compile(r"Caught \w+ in DataLoader worker process .*\n\w+: (?P<error>.*)", re.DOTALL)


def one_line(error: object) -> str:
    """An error's text in one line; of a DataLoader's worker, what went wrong in it."""
    text = str(error).strip()
    in_worker = IN_WORKER.match(text)
    return re.sub(r"\s+", " ", in_worker["error"] if in_worker else text)


def explain(parser: LightningArgumentParser, message: str) -> str:
    """One line of a parser's message, with the closest valid name where a key or class is unknown."""
    from upop.messages import closest

    line = _plain(UNION.sub(_of_union, one_line(message)))
    missing = UNKNOWN_CLASS.search(line)
    if missing:
        return line + (closest(missing.group(1), _classes()) or f"; upop has {sorted(_classes())}")
    found = UNKNOWN_KEY.search(line)
    if not found:
        return line
    section, _, unknown = next(group for group in found.groups() if group).partition(".")
    sections = {action.dest.partition(".")[0] for action in parser._actions}
    if section not in sections and unknown:
        return line + closest(section, sections)
    unknown = unknown.rpartition(".")[2] or section
    keys = {action.dest.rpartition(".")[2] for action in parser._actions}
    keys |= {key for made in _classes().values() for key in inspect.signature(made).parameters}
    return line + closest(unknown, keys - {unknown})


def _of_union(found: re.Match[str]) -> str:
    """What a value with several types should have been; or what is wrong with it, where its type is right."""
    errors = [error.partition(" - ")[0] for error in re.split(r" - (?=Expected a )", found["errors"])]
    wrong = [error for error in errors if not error.startswith("Expected a ")]
    if wrong or found["given"] is None:
        return (wrong or errors)[0]
    types = [error.removeprefix("Expected a ") for error in errors if "NoneType" not in error]
    given = found["given"] if len(found["given"]) < 80 else found["given"][:77] + "..."
    return f"Expected a {' or a '.join(types)}. Got value: {given}"


def _plain(line: str) -> str:
    """Types as a user writes them."""
    return re.sub(r"\ba typing\.Literal(?=\[)", "one of ", re.sub(r"\ba <class '(\w+)'>", r"\1", line))


def _classes() -> dict[str, type]:
    """The tasks and data modules that upop has, by name."""
    import upop.data
    import upop.tasks

    found = {name: getattr(module, name) for module in (upop.data, upop.tasks) for name in module.__all__}
    return {name: made for name, made in found.items() if inspect.isclass(made)}
