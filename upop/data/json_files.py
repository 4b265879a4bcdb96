"""Read JSON that people downloaded, and say precisely where it is not what it should be.

Whatever comes out of here can be used without a further look: paths stay below the image root, texts can be written
and tokenised, whole numbers fit into columns.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from upop.messages import some

Hook = Callable[[dict[str, Any]], Any]

LARGEST = 4 * 2**30
"""Bytes that a gzipped file may unpack to, ten times VQA v2's largest: a few kilobytes could claim the whole memory."""
WHOLE = range(-(2**63), 2**63)
"""Whole numbers that 64 bits hold."""
_PLAIN = re.compile(r"(?:[\w-]+/)*[\w-][\w.-]*", re.ASCII)
"""Paths that need no second look, as nearly all are: asking pathlib about each of 500,000 takes longer than JSON."""


def read_json(path: Path, hook: Hook | None = None) -> Any:  # noqa: ANN401 (anything that JSON can hold)
    """Read a JSON file, gzipped where its name ends in ``.gz``.

    Args:
        path: The file.
        hook: Called with each object as soon as it is read; what it returns takes the object's place. Millions of small
            objects never exist at the same time then.

    Raises:
        FileNotFoundError: If there is no such file; the message says what is there instead.
        ValueError: If it is not JSON.
    """
    try:
        return json.loads(_content(path), object_hook=hook)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is not JSON: {error}; download it again") from error


def read_json_lines(path: Path) -> list[Any]:
    """Read a file with one JSON value a line, gzipped where its name ends in ``.gz``; empty lines are left out.

    Raises:
        FileNotFoundError: If there is no such file; the message says what is there instead.
        ValueError: If a line is not JSON; the message names the line.
    """
    found = []
    for number, line in enumerate(_content(path).split(b"\n"), 1):
        if line.strip():
            try:
                found.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{str(path)!r}, line {number} is not JSON: {error}; expected one object a line"
                ) from error
    return found


def read_blip_list(path: Path) -> list[Any]:
    """Read one of the lists that BLIP's authors hand out for each task.

    Raises:
        FileNotFoundError: If there is no such file; the message says what is there instead.
        ValueError: If it is no JSON list.
    """
    data = read_json(path)
    if not isinstance(data, list):
        raise ValueError(
            f"{str(path)!r} is not one of BLIP's lists: expected a list of entries, found {contents(data)}"
        )
    return data


def find_file(folder: Path, name: str) -> Path | None:
    """A file in a folder, plain or gzipped, or nothing where there is none."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def json_names(folder: Path) -> list[str]:
    """Names of the JSON files in a folder, for messages."""
    return sorted(path.name for path in folder.iterdir() if ".json" in path.name) if folder.is_dir() else []


def text(entry: Any, key: str, where: str) -> str:  # noqa: ANN401 (anything that JSON can hold)
    """The text under a key of an object.

    Raises:
        ValueError: If there is none, or one with half a character; the message says what is there instead.
    """
    found = entry.get(key) if type(entry) is dict else None
    if type(found) is str and found.isascii():  # nearly always; the rest finds the words for what is wrong
        return found
    return legal(_value(entry, key, where, str, "text"), key, where)


def legal(given: str, key: str, where: str) -> str:
    """The text, refused where no file and no tokeniser could take it.

    Raises:
        ValueError: If it has half of a surrogate pair, which JSON can spell and UTF-8 cannot.
    """
    if not given.isascii():
        try:
            given.encode()
        except UnicodeEncodeError as error:
            half = given[error.start]
            raise ValueError(
                f"{where}: {key!r} has half a character, {half!r}, at place {error.start}; mend it or remove the entry"
            ) from error
    return given


def whole(entry: Any, key: str, where: str) -> int:  # noqa: ANN401 (anything that JSON can hold)
    """The whole number under a key of an object.

    Raises:
        ValueError: If there is none, or one that 64 bits cannot hold; the message says what is there instead.
    """
    found: int = _value(entry, key, where, int, "a whole number")
    if found not in WHOLE:
        raise ValueError(f"{where}: {key!r} has {len(str(abs(found)))} digits; expected a whole number of 64 bits")
    return found


def inside(image: str, where: str) -> str:
    """The path with forward slashes, refused where it could leave the image root.

    This is about the name alone; what it leads to is looked at when the image is looked for
    (:func:`~upop.data.images.search_paths`).

    Raises:
        ValueError: If it is absolute, empty or has a ``..``.
    """
    if _PLAIN.fullmatch(image):
        return image
    path = PurePosixPath(legal(image, "image", where).replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.name or "\0" in image or ":" in path.parts[0]:
        raise ValueError(f"{where}: image path {image!r} leaves the image root; expected a relative path without '..'")
    return str(path)


def kind(value: Any) -> str:  # noqa: ANN401 (anything that JSON can hold)
    """What a value is, in words.

    >>> kind([]), kind(None), kind(3)
    ('a list', 'null', 'the number 3')
    """
    kinds = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), f"the number {value!r}" if isinstance(value, int | float) else type(value).__name__)


def contents(value: Any) -> str:  # noqa: ANN401 (anything that JSON can hold)
    """What a value is, in words, and the keys of an object."""
    return f"an object with keys {some(sorted(value))}" if isinstance(value, dict) else kind(value)


def _value(entry: Any, key: str, where: str, wanted: type, words: str) -> Any:  # noqa: ANN401
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is {kind(entry)}; expected an object with {key!r}")
    value = entry.get(key)
    if not isinstance(value, wanted) or isinstance(value, bool):
        found = kind(value) if key in entry else f"missing (keys are {some(sorted(map(str, entry)))})"
        raise ValueError(f"{where}: {key!r} is {found}; expected {words}")
    return value


def _content(path: Path) -> bytes:
    if not path.is_file():
        there = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
        raise FileNotFoundError(f"no file {path.name!r} in {str(path.parent)!r}; it has {some(there)}")
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        with gzip.open(path) as file:
            content = file.read(LARGEST + 1)
    except PermissionError:
        raise
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{str(path)!r} is not JSON: {error}; download it again") from error
    if len(content) > LARGEST:
        raise ValueError(f"{str(path)!r} unpacks to more than {LARGEST / 2**30:g} GiB; unpack it if you trust it")
    return content
