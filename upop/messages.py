"""Parts of error messages that every part of upop shares."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(name: str, names: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the name nearest to ``name``, or nothing where none is near.

    >>> closest("visoin", ["vision", "text"])
    "; did you mean 'vision'?"
    """
    match = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


def some(names: Iterable[str], most: int = 3) -> str:
    """The first few of many names.

    >>> some(["a", "b", "c", "d"], most=2)
    "['a', 'b', ...] (4)"
    """
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:most])
    return f"[{shown}, ...] ({len(names)})" if len(names) > most else f"[{shown}]"
