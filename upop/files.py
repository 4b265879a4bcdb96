"""Files written whole or not at all: a temporary name in the same directory, fsync, rename."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def write_atomic(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it into place.

    A reader sees the old file or the new one, never half of one; a crash leaves the old one.

    Args:
        path: File to write. Its directory is made if it is missing.
        write: Called with the temporary path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=f".tmp{path.suffix}", dir=path.parent)
    os.close(handle)
    try:
        write(Path(name))
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path``, atomically."""
    write_atomic(path, lambda temporary: temporary.write_text(text))


def write_json(path: str | Path, data: dict[str, Any], wide: Iterable[str] = ()) -> None:
    """Write ``data`` as indented JSON, atomically.

    Args:
        path: File to write.
        data: What to write.
        wide: Top-level keys whose value is a mapping of long lists: one entry a line, so that a diff names the entry.
    """
    wide = set(wide)
    parts = []
    for key, value in data.items():
        if key in wide:
            rows = ",\n".join(f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in value.items())
            text = "{\n" + rows + "\n  }"
        else:
            text = json.dumps(value, indent=2).replace("\n", "\n  ")
        parts.append(f"  {json.dumps(key)}: {text}")
    write_text(path, "{\n" + ",\n".join(parts) + "\n}\n")
