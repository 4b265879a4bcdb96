"""The page of one or several runs: of summary.json in their directories or, before there is one, of what there is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from upop.files import write_text
from upop.report.facts import Run
from upop.report.page import page
from upop.runs.summary import REPORT, SUMMARY_FORMAT
from upop.runs.unfinished import CONFIG, so_far

SUMMARY = "summary.json"


def write_report(run_dirs: Sequence[str | Path], to: str | Path | None = None, metric: str | None = None) -> Path:
    """Write the page of runs, atomically; nothing is written if one of them cannot be read.

    Args:
        run_dirs: Run directories, finished or not; several are compared.
        to: File to write; by default report.html in the run directory, or, of several, in the working directory.
        metric: What headline and curve show, by its name in summary.json; by default what stands for each run's task.

    Returns:
        The file.

    Raises:
        FileNotFoundError: If there is no such directory.
        ValueError: If a directory is no run's, or is given twice, one of its files cannot be read or is of another
            format, or a run has no such metric.
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
    """The run in a directory, as far as it went.

    Raises:
        FileNotFoundError: If there is no such directory.
        ValueError: If it is no run's, or a file of it cannot be read or is of another format.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"no run directory at {str(path)!r}; give one that `upop fit` has written")
    file = path / SUMMARY
    if not file.is_file():
        return so_far(path, name)
    again = f"`upop fit --config {path / CONFIG}` writes it anew and repeats no phase"
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
