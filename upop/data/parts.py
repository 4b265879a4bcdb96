"""Data sets that come in parts, and which of them are trained on and which are held out: the user's choice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from lightning.pytorch.utilities import rank_zero_warn

from upop.data.annotations import Split
from upop.data.base import Content
from upop.data.on_disk import FileDataModule
from upop.messages import closest

Read = TypeVar("Read")
Takes = dict[Split, list[str]]
"""Names of the parts that each split takes."""


class PartedFiles(FileDataModule[Content]):
    """A data set in parts. A subclass knows the data set and its parts.

    Args:
        train: Parts of the data set to train on, by name.
        val: Parts to validate on.
        test: Parts to test on.
        **shared: As :class:`~upop.data.on_disk.FileDataModule`.
    """

    parts: ClassVar[Mapping[str, Any]]

    def __init__(
        self,
        *,
        train: Sequence[str],
        val: Sequence[str],
        test: Sequence[str],
        **shared: Any,  # noqa: ANN401 (the base class's own, which jsonargparse finds)
    ) -> None:
        if not hasattr(self, "parts"):
            raise TypeError(
                f"{type(self).__name__} names no files of its own; use a subclass, such as upop.data.VqaV2 or "
                "upop.data.Nlvr2"
            )
        super().__init__(**shared)
        self.takes = taken(train, val, test, self.parts)

    def _parts(self, read: Callable[[str], Read]) -> dict[Split, list[Read]]:
        """What each split takes; every part is read once.

        Args:
            read: Reads a part by its name.
        """
        _warn_of_leaks(self.takes)
        found: dict[str, Read] = {}
        for name in dict.fromkeys(name for names in self.takes.values() for name in names):
            found[name] = read(name)
        return {split: [found[name] for name in names] for split, names in self.takes.items()}


def taken(train: Sequence[str], val: Sequence[str], test: Sequence[str], known: Iterable[str]) -> Takes:
    """The parts of each split, checked.

    Args:
        train: Parts to train on.
        val: Parts to validate on.
        test: Parts to test on.
        known: Parts that the data set has.

    Raises:
        ValueError: If a split takes no part, one twice, or one that does not exist.
        TypeError: If a split is one text instead of a list of them.
    """
    known = sorted(known)
    given: Mapping[Split, Sequence[str]] = {"train": train, "val": val, "test": test}
    for split, names in given.items():
        if isinstance(names, str):
            raise TypeError(f"{split} is {names!r}; expected a list of parts, such as [{names}]")
        if not names:
            raise ValueError(f"{split} takes no part of the data; choose from {known}")
        for name in names:
            if name not in known:
                raise ValueError(f"{split} takes {name!r}; the data set has {known}{closest(name, known)}")
        if len(set(names)) < len(names):
            raise ValueError(f"{split} takes a part twice: {list(names)}; name each once")
    return {split: list(names) for split, names in given.items()}


def _warn_of_leaks(takes: Takes) -> None:
    """Say so where a split is measured on what is trained on: its figures are no result then."""
    for split in ("val", "test"):
        seen = [name for name in takes[split] if name in takes["train"]]
        if seen:
            rank_zero_warn(f"{split} takes {seen}, which train takes too: its figures say nothing about new data")
