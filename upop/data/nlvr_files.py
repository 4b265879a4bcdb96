"""Read NLVR2's statements, official or BLIP's lists of them, and those of NLVR v1.

All are true or false, and all become :class:`Statement`; whatever a file gets wrong is named before a model is built.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from upop.data.json_files import inside, kind, read_blip_list, read_json_lines, text
from upop.data.reasoning import Pair


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence, and the images that it is about.

    Attributes:
        pair: The sentence and what is known of it.
        images: Paths of two images; of one where both are in one picture (NLVR v1).
    """

    pair: Pair
    images: tuple[str, ...]


def read_nlvr2(path: Path) -> list[Statement]:
    """Read an official file: an object a line.

    An identifier such as ``dev-850-2-1`` is split, set of pairs, pair in the set, sentence about the set: pairs with
    equal sentences differ in the third number only.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not of this layout; the message names the entry.
    """
    found = []
    for entry, where in _lines(path):
        identifier = text(entry, "identifier", where)
        numbers = identifier.rsplit("-", 3)
        if len(numbers) < 4:
            raise ValueError(
                f"{where}: 'identifier' is {identifier!r}; expected split-set-pair-sentence, such as 'dev-850-2-1'. "
                "NLVR v1, whose identifiers have two numbers, is upop.data.Nlvr"
            )
        split, group, pair, sentence = numbers
        folder = f"{split}/{entry['directory']}" if "directory" in entry else split
        images = tuple([inside(f"{folder}/{split}-{group}-{pair}-img{n}.png", where) for n in (0, 1)])
        found.append(_statement(entry, where, identifier, f"{split}-{group}--{sentence}", images))
    return _unrepeated(found, path)


def read_blip_pairs(path: Path) -> list[Statement]:
    """Read one of BLIP's lists, which name two images a sentence and no identifiers.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not JSON of this layout; the message names the entry.
    """
    data = read_blip_list(path)
    if not data:
        raise ValueError(f"{str(path)!r} has no statements; download it again")
    found = []
    for number, entry in enumerate(data):
        where = f"{str(path)!r}, entry {number}"
        sentence = text(entry, "sentence", where)
        named = entry.get("images")
        if not isinstance(named, list) or len(named) != 2:
            many = f"a list of {len(named)}" if isinstance(named, list) else kind(named)
            raise ValueError(f"{where}: 'images' is {many}; expected a list of two image paths")
        images = [inside(text({"images": one}, "images", where), where) for one in named]
        name = PurePosixPath(images[0]).stem.removesuffix("-img0")
        group = f"{name.rpartition('-')[0]} {sentence}"  # of all pairs of a set that the sentence is about
        paths = tuple([image.removeprefix("images/") for image in images])
        found.append(_statement(entry, where, f"{name}-{number}", group, paths))
    return found


def read_nlvr(path: Path, part: str) -> list[Statement]:
    """Read a file of NLVR v1: an object a line, each with a picture of three boxes.

    Args:
        path: The file.
        part: ``train``, ``dev``, ``test`` or ``hidden``, with which the names of its pictures begin.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not of this layout; the message names the entry.
    """
    found = []
    for entry, where in _lines(path):
        identifier = text(entry, "identifier", where)
        name = f"{part}-{identifier}"
        if len(identifier.split("-")) != 2:
            raise ValueError(
                f"{where}: 'identifier' is {identifier!r}; expected two numbers, such as '72-0'. NLVR2, whose "
                "identifiers have more, is upop.data.Nlvr2"
            )
        image = inside(f"{name}-0.png", where)
        found.append(_statement(entry, where, name, f"{part}-{identifier.split('-')[0]}", (image,)))
    return _unrepeated(found, path)


def _lines(path: Path) -> Sequence[tuple[Any, str]]:
    """The entries of a file, and where each is, for messages."""
    entries = read_json_lines(path)
    if not entries:
        raise ValueError(f"{str(path)!r} has no statements; download it again")
    return [(entry, f"{str(path)!r}, entry {number}") for number, entry in enumerate(entries)]


def _statement(entry: Any, where: str, identifier: str, group: str, images: tuple[str, ...]) -> Statement:  # noqa: ANN401
    label = entry.get("label")
    truth = {"true": True, "false": False}.get(str(label).lower())
    if truth is None:
        told = repr(label) if isinstance(label, str) else kind(label)
        raise ValueError(f"{where}: 'label' is {told}; expected 'True' or 'False'")
    return Statement(Pair(identifier, text(entry, "sentence", where), truth, group), images)


def _unrepeated(found: list[Statement], path: Path) -> list[Statement]:
    times = Counter(statement.pair.identifier for statement in found)
    twice = sorted(identifier for identifier, count in times.items() if count > 1)
    if twice:
        raise ValueError(
            f"{str(path)!r} has {len(twice)} identifiers more than once, the first of them {twice[:3]}; keep one entry "
            "each"
        )
    return found
