"""Files and directories written whole or not at all: a temporary name in the same directory, fsync, rename."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_TEXTS = ("No space left on device", "Disk quota exceeded")
"""What libraries that hide the error number say."""


class DiskFullError(OSError):
    """There is no room for a file; what was there before it is whole."""


def write_atomic(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it into place.

    A reader sees the old file or the new one, never half of one; a crash leaves the old one.

    Args:
        path: File to write. Its directory is made if it is missing.
        write: Called with the temporary path.
    """
    path = Path(path)
    with full_disk_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=f".tmp{path.suffix}", dir=path.parent)
        os.close(handle)
        try:
            write(Path(name))
            os.chmod(name, 0o666 & ~umask())
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


@contextmanager
def full_disk_explained(path: Path) -> Iterator[None]:
    """Turn the many errors of a full disk into one that says what to do.

    Args:
        path: File or directory that is written in the with-block.

    Raises:
        DiskFullError: If there was no room.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        if not is_full_disk(error):
            raise
        before = f"; the {path.name} of before is whole" if path.exists() else ""
        raise DiskFullError(
            f"no room for {str(path)!r}: {megabytes(free_bytes(path))} are free on its disk{before}; free some, or go "
            "on in a run_dir on a larger disk (copy this one there), and run the same command again"
        ) from error


def is_full_disk(error: BaseException | None) -> bool:
    """Whether ``error`` was caused by a full disk; torch and safetensors raise errors of their own of it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(text in str(error) for text in FULL_TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return False


def free_bytes(path: Path) -> int:
    """Bytes that are free on the disk of ``path``, which need not exist."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def megabytes(count: float) -> str:
    """A number of bytes as a person reads it.

    >>> megabytes(1_234_567), megabytes(12_345_678_901)
    ('1.2 MB', '12.3 GB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` in UTF-8, whatever the locale, atomically."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, data: Mapping[str, Any]) -> None:
    """Write ``data`` as JSON that a person can read and diff, atomically: a list of plain values stays on one line."""
    write_text(path, _json(data) + "\n")


def _json(value: Any, indent: str = "") -> str:  # noqa: ANN401 (anything that JSON can hold)
    inner = indent + "  "
    if isinstance(value, Mapping) and value:
        rows = [f"{inner}{json.dumps(key)}: {_json(entry, inner)}" for key, entry in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
    if isinstance(value, (list, tuple)) and any(isinstance(entry, (Mapping, list, tuple)) for entry in value):
        return "[\n" + ",\n".join(inner + _json(entry, inner) for entry in value) + f"\n{indent}]"
    return json.dumps(value)


@contextmanager
def whole_directory(directory: Path) -> Iterator[Path]:
    """A temporary directory beside ``directory`` to fill in a with-block; at its end it takes the place of that one.

    If the block fails, nothing is left of it, and an older directory stays as it was.
    """
    with full_disk_explained(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
        try:
            yield temporary
            os.chmod(temporary, 0o777 & ~umask())
            sync(temporary)
            _replace(temporary, directory)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _replace(temporary: Path, directory: Path) -> None:
    """Put ``temporary`` in the place of ``directory``."""
    if directory.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{directory.name}-old-", dir=directory.parent))
        os.rename(directory, old / directory.name)
        try:
            os.rename(temporary, directory)
        except BaseException:
            os.rename(old / directory.name, directory)
            old.rmdir()
            raise
        shutil.rmtree(old)
    else:
        os.rename(temporary, directory)


def sync(directory: Path) -> None:
    """Force the files of ``directory``, one level deep, to the disk."""
    for path in [*directory.iterdir(), directory]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def umask() -> int:
    """The permissions that new files do without."""
    found = os.umask(0)
    os.umask(found)
    return found
