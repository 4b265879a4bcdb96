"""A progress bar for what an evaluation still has to do when all its batches are through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress_bar(trainer: Any, what: str, total: int) -> Iterator[Callable[[int], None]]:  # noqa: ANN401 (a Trainer)
    """A bar with the time left, on rank 0, that goes when the work is done or fails.

    It joins Lightning's own bars where these are rich's, whose display would fight with another one.

    Args:
        trainer: Where its progress bar is off, there is none here either.
        what: What is being done.
        total: Steps of rank 0.

    Yields:
        What to call with the number of steps done since the last call.
    """
    bar = trainer.progress_bar_callback if trainer.is_global_zero else None
    if bar is None or bar.is_disabled:
        yield lambda steps: None
        return
    shared = getattr(bar, "progress", None)
    if not isinstance(shared, Progress):
        with _display() as display:
            yield partial(display.advance, display.add_task(what, total=total))
        return
    task = shared.add_task(what, total=total)

    def advance(steps: int) -> None:
        shared.advance(task, steps)
        bar.refresh()

    try:
        yield advance
    finally:
        shared.remove_task(task)


def _display() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
