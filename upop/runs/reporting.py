"""The page of one or several finished runs, from the summary.json in their directories."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from upop.files import write_text
from upop.report.facts import Run
from upop.report.page import page
from upop.runs.summary import REPORT, SUMMARY_FORMAT


def write_report(run_dirs: Sequence[str | Path], to: str | Path | None = None, metric: str | None = None) -> Path:
    """Write the page of finished runs, atomically; nothing is written if one of them cannot be read.

    Args:
        run_dirs: Run directories; several are compared.
        to: File to write; by default report.html in the run directory, or, of several, in the working directory.
        metric: What headline and curve show, by its name in summary.json; by default what stands for each run's task.

    Returns:
        The file.

    Raises:
        FileNotFoundError: If there is no such run directory.
        ValueError: If a run is not finished, given twice, or of another format, or has no such metric.
        IsADirectoryError: If ``to`` is a directory.
    """
    paths = [Path(path) for path in run_dirs]
    real = [path.resolve() for path in paths]
    for path, place in zip(paths, real, strict=True):
        if real.count(place) > 1:
            raise ValueError(f"run directory {str(path)!r} is given twice; give each once")
    short = [place.name for place in real]
    names = [name if short.count(name) == 1 else str(path) for name, path in zip(short, paths, strict=True)]
    runs = [_read(path, name) for path, name in zip(paths, names, strict=True)]
    file = Path(to) if to is not None else paths[0] / REPORT if len(paths) == 1 else Path(REPORT)
    if file.is_dir():
        raise IsADirectoryError(f"{str(file)!r} is a directory; give the name of a file")
    write_text(file, page(runs, metric))
    return file


def _read(path: Path, name: str) -> Run:
    """The run in a directory.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not finished, or of another format.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"no run directory at {str(path)!r}; give one that `upop fit` has written")
    file = path / "summary.json"
    again = f"`upop fit --config {path / 'config.yaml'}` writes it anew and repeats no phase"
    if not file.is_file():
        raise ValueError(_unfinished(path, again))
    try:
        summary = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{str(file)!r} is not JSON: {error}; {again}") from error
    found = summary.get("format") if isinstance(summary, dict) else type(summary).__name__
    if found != SUMMARY_FORMAT:
        raise ValueError(f"{str(file)!r} has format {found!r}; this version reads format {SUMMARY_FORMAT}; {again}")
    try:
        return Run.of(summary, name)
    except ValueError as error:
        raise ValueError(f"{str(file)!r} cannot be reported: {error}; {again}") from error


def _unfinished(path: Path, again: str) -> str:
    """Why a directory has no summary.json, with what there is and what to do."""
    done = _phases(path)
    if done is None:
        return f"{str(path)!r} is no run directory: it has no state.json; give one that `upop fit` has written"
    if "retrain" in done:
        return f"run directory {str(path)!r} has no summary.json; {again}"
    return (
        f"run directory {str(path)!r} is not finished: of finetune, search and retrain, {done} are done; go on with "
        f"`upop fit --config {path / 'config.yaml'}`"
    )


def _phases(path: Path) -> list[str] | None:
    """Names of the phases that are done; ``None`` where nothing ever ran."""
    if not (path / "state.json").is_file():
        return [] if (path / "config.yaml").is_file() else None
    try:
        state: Any = json.loads((path / "state.json").read_text())
        return list(state["phases"])
    except (ValueError, TypeError, KeyError):
        return None
