"""What results have in common: every item answered exactly once, and a JSON list that the test servers take."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

from upop.files import write_text


def check_complete(found: Collection[Hashable], expected: Iterable[Hashable], what: str) -> None:
    """Refuse results that leave out an item or name one that nobody asked for.

    Args:
        found: Id of every item that has a result.
        expected: Id of every item that needs one.
        what: What an item is, in the singular, for the messages.

    Raises:
        ValueError: If nothing is expected, an id is expected twice, has no result, or is unknown.

    >>> check_complete({7, 9}, [9, 7], "question")
    """
    counts = Counter(iter(expected))  # of a mapping it would take the values for counts
    if not counts:
        raise ValueError(f"no {what} was given; give at least 1")
    twice = [item for item, count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"{what} {twice[0]!r} is listed twice; give each {what} an id of its own")
    found = set(found)
    missing = [item for item in counts if item not in found]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(counts)} {what}s have no result, the first ones {missing[:5]!r}; "
            f"give one for every {what}"
        )
    unknown = [item for item in found if item not in counts]
    if unknown:
        raise ValueError(f"there is a result for {what} {unknown[0]!r}, which is none of the {len(counts)} {what}s")


def check_writable(path: str | Path | None) -> None:
    """Refuse a result file that cannot be written, before hours of training; ``None`` is none at all.

    Raises:
        ValueError: If it is a directory, or one of the directories above it cannot be made or written to.
    """
    if path is None:
        return
    above = next(folder for folder in Path(path).absolute().parents if folder.exists())
    if Path(path).is_dir():
        raise ValueError(f"result_file is {str(path)!r}, which is a directory; give a file in it")
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        what = "cannot be written to" if above.is_dir() else "is no directory"
        raise ValueError(f"result_file is {str(path)!r}, but {str(above)!r} {what}; give another place")


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write ``rows`` to ``path`` as a JSON list, one row on each line, atomically."""
    write_text(path, "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
