"""One run, one directory: its configuration, which phases are done, and what they found."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_only

from upop.files import write_json, write_text

STATE = "state.json"
STATE_FORMAT = 1
VOLATILE = (
    "run_dir",
    "checkpoints",
    "guards",
    "measure",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.log_every_n_steps",
    "data.init_args.num_workers",
    "data.init_args.verify",
)


class RunDirectory:
    """A run directory. Opening it checks that it can be written and that it belongs to the same configuration.

    In a distributed run every rank opens it and notes the same; rank 0 alone writes.

    Args:
        path: The directory; made if it is missing.
        config: The resolved configuration of the run, plain values only.

    Raises:
        ValueError: If the directory was started with another configuration (the message shows the difference), or
            holds a state of another format.
        PermissionError: If the directory cannot be written.
    """

    def __init__(self, path: str | Path, config: Mapping[str, Any]) -> None:
        self.path = Path(path)
        _check_writable(self.path)
        self._config = dict(config)
        stored = self.path / "config.yaml"
        if stored.is_file():
            _check_same(self.path, _stored(stored), flatten(config))
        self._state = read_state(self.path)

    def begin(self) -> None:
        """Write down the configuration; from now on the directory takes no other.

        Not before everything has been checked: a recipe with a wrong path is to be mended and run again.
        """
        if not (self.path / "config.yaml").is_file():
            rank_zero_only(write_text)(self.path / "config.yaml", yaml.safe_dump(self._config, sort_keys=False))

    def phase(self, name: str) -> Path:
        """Directory of a phase."""
        return self.path / name

    def done(self, phase: str) -> bool:
        """Whether a phase has finished, its files included."""
        return phase in self._state["phases"]

    def finish(self, phase: str, facts: Mapping[str, Any]) -> None:
        """Note that a phase has finished."""
        self._state["phases"][phase] = dict(facts)
        self._write()

    def facts(self, phase: str) -> dict[str, Any]:
        """What :meth:`finish` noted of a phase; empty if it has not finished."""
        return dict(self._state["phases"].get(phase, {}))

    def evaluation(self, name: str) -> dict[str, float] | None:
        """Metrics noted for a state of the model (``dense``, ``cut``, ``retrained``), or ``None``."""
        found = self._state["evaluations"].get(name)
        return None if found is None else dict(found)

    def note_evaluation(self, name: str, metrics: Mapping[str, float]) -> None:
        """Note the metrics of a state of the model."""
        self._state["evaluations"][name] = dict(metrics)
        self._write()

    @rank_zero_only
    def _write(self) -> None:
        write_json(self.path / STATE, self._state)


@rank_zero_only
def _check_writable(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".write-test-"):
            pass
    except OSError as error:
        raise PermissionError(
            f"run directory {str(path)!r} is not writable: {error.strerror}; "
            f"choose another run_dir or mend its permissions"
        ) from error


def _stored(file: Path) -> dict[str, Any]:
    """The configuration that a run directory was started with, as one level of dotted keys."""
    try:
        found = yaml.safe_load(file.read_text()) or {}
        flat = flatten(found) if isinstance(found, dict) else None  # of a mapping in itself, without end
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # dates that are none and bytes that are no text, too
        raise ValueError(f"{str(file)!r} is not YAML: {error}; delete the run directory to start again") from error
    if flat is None:
        raise ValueError(f"{str(file)!r} holds a {type(found).__name__}; delete the run directory to start again")
    return flat


def read_state(path: Path) -> dict[str, Any]:
    """What a run directory knows: ``phases`` that are done and ``evaluations``, with their facts, by name.

    Both are empty before there is anything to know.

    Raises:
        ValueError: If its state.json is no JSON, of another format, or has facts that cannot be.
    """
    file = path / STATE
    if not file.is_file():
        return {"format": STATE_FORMAT, "phases": {}, "evaluations": {}}
    try:
        state = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(file)!r} is not JSON: {error}; delete the run directory to start again") from error
    if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
        raise ValueError(f"{str(file)!r} is of another format; this version reads format {STATE_FORMAT}")
    for part in ("phases", "evaluations"):
        known = state.get(part)
        if not isinstance(known, dict) or not all(isinstance(facts, dict) for facts in known.values()):
            raise ValueError(f"{str(file)!r} has no facts by name in {part!r}; delete the run directory to start again")
    for part, name, key, wanted in _odd(state):
        raise ValueError(
            f"{str(file)!r} has {repr(state[part][name][key])[:80]} as {key!r} of {name!r} in {part!r}, which is no "
            f"{wanted}; delete the run directory to start again"
        )
    return state


def _odd(state: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Facts that are not what they have to be: part, name, key, and what they should be."""
    for name, facts in state["phases"].items():
        for key, (wanted, is_wanted) in FACTS.items():
            if key in facts and not is_wanted(facts[key]):
                yield "phases", name, key, wanted
    for name, metrics in state["evaluations"].items():
        for key, value in metrics.items():
            if not _is_number(value):
                yield "evaluations", name, key, "number"


def _is_number(value: Any) -> bool:  # noqa: ANN401 (anything that JSON can hold)
    """Whether it is a number that a float can hold; JSON's integers have no limit."""
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def _is_count(value: Any) -> bool:  # noqa: ANN401
    return type(value) is int and 0 <= value < 2**63


def _is_history(value: Any) -> bool:  # noqa: ANN401
    rows = value if isinstance(value, list) else [None]
    return all(isinstance(row, dict) and "step" in row and all(map(_is_number, row.values())) for row in rows)


FACTS = {
    "model": ("path", lambda value: isinstance(value, str)),
    "seconds_last_attempt": ("number", _is_number),
    "steps_left_out": ("count", _is_count),
    "history": ("list of updates, each with its step and numbers", _is_history),
}
"""What phases note of themselves, by name: in words, and how to tell."""


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration as one level of dotted keys.

    >>> flatten({"search": {"removed": 0.5, "units": ["neuron"]}})
    {'search.removed': 0.5, 'search.units': ['neuron']}
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def _check_same(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse another configuration on the same directory, with the difference."""
    changed = []
    for key in sorted({*old, *new}):
        before, after = old.get(key, "(not set)"), new.get(key, "(not set)")
        if before != after and not key.startswith(VOLATILE):
            changed.append(f"{key}: {before!r} -> {after!r}")
    if changed:
        raise ValueError(
            f"run directory {str(path)!r} was started with another configuration ({'; '.join(changed)}); give another "
            "run_dir, or delete the directory to start again"
        )
