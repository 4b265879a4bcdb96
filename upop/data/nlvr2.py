"""NLVR2: sentences about two photographs that are true or false, from its files."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from upop.data.annotations import Split
from upop.data.images import ImageFolder, refuse_missing, search_paths
from upop.data.json_files import find_file, json_names
from upop.data.nlvr_files import Statement, read_blip_pairs, read_nlvr2
from upop.data.reasoning import PairedImages
from upop.data.statement_files import StatementFiles
from upop.messages import some


class FilePairs:
    """Pairs of image files with their statements.

    Args:
        statements: One per pair, with two paths each.
        folder: Where the paths lead.
        keep: Whether to decode the images ahead.
    """

    def __init__(self, statements: Sequence[Statement], folder: ImageFolder, keep: bool) -> None:
        self.pairs = [statement.pair for statement in statements]
        self.paths = [statement.images for statement in statements]
        self.folder, self.keep = folder, keep

    def load(self, number: int) -> tuple[Image.Image, Image.Image]:
        """The left and the right image of the pair with this number, as RGB."""
        left, right = self.paths[number]
        return self.folder.load(left), self.folder.load(right)

    def prepare(self, processor: Any) -> None:  # noqa: ANN401 (transformers has no common type)
        """Decode the images, if they are to be kept in memory."""
        if self.keep:
            self.folder.keep(dict.fromkeys(itertools.chain(*self.paths)))


@dataclass(frozen=True)
class Nlvr2Part:
    """Where one part of NLVR2 is found: its official file, or BLIP's list."""

    official: str
    blip: str | None = None

    def read(self, folder: Path) -> list[Statement]:
        """Read the official file, or BLIP's list where it is not there.

        Raises:
            FileNotFoundError: If neither is there.
        """
        official, listed = find_file(folder, self.official), self.blip and find_file(folder, self.blip)
        if official:
            return read_nlvr2(official)
        if listed:
            return read_blip_pairs(listed)
        instead = f" (nor BLIP's {self.blip!r})" if self.blip else ""
        raise FileNotFoundError(
            f"{str(folder)!r} has no {self.official!r}{instead}, plain or gzipped; its JSON files are "
            f"{some(json_names(folder))}"
        )


class Nlvr2(StatementFiles):
    """NLVR2 (Suhr et al., ACL 2019): 86,373 training, 6,982 dev and 6,967 test1 statements about two photographs.

    Args:
        train: Parts to train on: ``train``, ``dev``, ``test1``, ``test2``.
        val: Parts to validate on.
        test: Parts to test on.
        **shared: As :class:`~upop.data.on_disk.FileDataModule` and
            :class:`~upop.data.reasoning.ReasoningDataModule`.
    """

    parts: ClassVar[Mapping[str, Nlvr2Part]] = {
        "train": Nlvr2Part("train.json", "nlvr_train.json"), "dev": Nlvr2Part("dev.json", "nlvr_dev.json"),
        "test1": Nlvr2Part("test1.json", "nlvr_test.json"), "test2": Nlvr2Part("test2.json"),
    }  # fmt: skip

    folders = ("", "images")

    def __init__(
        self,
        *,
        train: Sequence[str] = ("train",),
        val: Sequence[str] = ("dev",),
        test: Sequence[str] = ("test1",),
        **shared: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(train=train, val=val, test=test, **shared)

    def _open(self) -> dict[Split, PairedImages]:
        found, folder = self._statements(self._read)
        return {split: FilePairs(statements, folder, self.cache_images) for split, statements in found.items()}

    def _read(self, name: str) -> list[Statement]:
        """The statements of a part, with images that exist."""
        found = self.parts[name].read(Path(self.annotations))
        named = list(dict.fromkeys(itertools.chain(*(statement.images for statement in found))))
        paths, missing = search_paths(named, self.images, self.folders)
        place = dict(zip(named, paths, strict=True))
        located = [replace(statement, images=tuple(place[image] for image in statement.images)) for statement in found]
        gone = set(missing)
        halves = [
            (one.pair, gone.intersection(one.images)) for one in located if len(gone.intersection(one.images)) == 1
        ]
        if halves:
            pair, lost = halves[0]
            raise FileNotFoundError(
                f"{len(halves)} of {len(found)} pairs of part {name!r} lack one of their two images under "
                f"{self.images!r}, the first of them {pair.identifier!r}, which lacks {min(lost)!r}; download them, or "
                "remove the pairs from the annotations"
            )
        refuse_missing(paths, missing, self.images, self.folders)
        return located
