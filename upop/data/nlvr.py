"""NLVR v1: sentences about three drawn boxes that are true or false, from its files."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from PIL import Image

from upop.data.annotations import Split
from upop.data.images import ImageFolder, locate_paths
from upop.data.json_files import find_file, json_names
from upop.data.nlvr_files import Statement, read_nlvr
from upop.data.reasoning import PairedImages
from upop.data.settings import one_of
from upop.data.statement_files import StatementFiles
from upop.data.transforms import Augment
from upop.messages import some

Permutations = Literal["all", "first"]
BOX, GAP = 100, 50
"""Pixels along a side of a box, and between two boxes, in a picture of NLVR v1."""
GREY = (128, 128, 128)
"""Colour between the boxes."""
ORDERS = tuple(itertools.permutations(range(3)))
"""The six orders of three boxes, the first as they are."""


class BoxPairs:
    """Pictures of three boxes with their statements, as two images: the left two boxes, and the right two.

    The box in the middle is in both: each image has two whole boxes and what is between them, and both together have
    all three. The order of the boxes does not matter to the truth of a sentence.

    Args:
        statements: One per picture, with one path each.
        folder: Where the paths lead.
        keep: Whether to decode the pictures ahead.
        orders: In how many of the :data:`ORDERS` each statement is asked about: 1 or 6.
    """

    def __init__(self, statements: Sequence[Statement], folder: ImageFolder, keep: bool, orders: int) -> None:
        self.paths = [statement.images[0] for statement in statements]
        self.pairs = [
            replace(statement.pair, identifier=f"{statement.pair.identifier}-{order}")
            for statement in statements
            for order in range(orders)
        ]
        self.folder, self.keep, self.orders = folder, keep, orders

    def load(self, number: int) -> tuple[Image.Image, Image.Image]:
        """The left two boxes and the right two of the picture, with its boxes in this pair's order, as RGB."""
        path = self.paths[number // self.orders]
        picture = self.folder.load(path)
        if picture.size != (3 * BOX + 2 * GAP, BOX):
            raise ValueError(
                f"image {path!r} has {picture.width} x {picture.height} pixels; the pictures of NLVR v1 have "
                f"{3 * BOX + 2 * GAP} x {BOX}"
            )
        boxes = [picture.crop((left, 0, left + BOX, BOX)) for left in range(0, picture.width, BOX + GAP)]
        one, two, three = (boxes[place] for place in ORDERS[number % self.orders])
        return _side_by_side(one, two), _side_by_side(two, three)

    def prepare(self, processor: Any) -> None:  # noqa: ANN401 (transformers has no common type)
        """Decode the pictures, if they are to be kept in memory."""
        if self.keep:
            self.folder.keep(self.paths)


def _side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    found = Image.new("RGB", (2 * BOX + GAP, BOX), GREY)
    found.paste(left, (0, 0))
    found.paste(right, (BOX + GAP, 0))
    return found


class Nlvr(StatementFiles):
    """NLVR v1 (Suhr et al., ACL 2017): statements about three drawn boxes, shown as two images of two boxes each.

    Annotations are ``<part>/<part>.json``, or ``<part>.json``, and pictures ``<part>/images/<number>/*.png``, as the
    authors hand them out. Of the six pictures of a statement, which differ in the order of the boxes, only the first is
    read, and the others are made of it.

    Args:
        train: Parts to train on: ``train``, ``dev``, ``test``, ``hidden``.
        val: Parts to validate on.
        test: Parts to test on.
        permutations: ``all``: a training statement comes with each of the six orders of the boxes in every epoch.
            ``first``: only as they are.
        eval_permutations: The same for val and test. The published accuracy is over ``all``.
        augment: As :class:`~upop.data.base.TaskDataModule`; ``paper`` crops things away that statements count.
        flip: Mirror every second training pair. Leave it off: sentences tell the walls of a box apart.
        swap: Let images change sides, and *left* and *right* with them. Leave it off: those are the walls.
        **shared: As :class:`~upop.data.on_disk.FileDataModule` and
            :class:`~upop.data.reasoning.ReasoningDataModule`.
    """

    parts: ClassVar[Mapping[str, str]] = {name: f"{name}.json" for name in ("train", "dev", "test", "hidden")}

    def __init__(
        self,
        *,
        train: Sequence[str] = ("train",),
        val: Sequence[str] = ("dev",),
        test: Sequence[str] = ("test",),
        permutations: Permutations = "all",
        eval_permutations: Permutations = "all",
        augment: Augment = "light",
        flip: bool = False,
        swap: bool = False,
        **shared: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(train=train, val=val, test=test, augment=augment, flip=flip, swap=swap, **shared)
        one_of(get_args(Permutations), permutations=permutations, eval_permutations=eval_permutations)
        self.permutations, self.eval_permutations = permutations, eval_permutations

    def _open(self) -> dict[Split, PairedImages]:
        found, folder = self._statements(self._read)
        orders = {"all": len(ORDERS), "first": 1}
        kinds = {"train": self.permutations, "val": self.eval_permutations, "test": self.eval_permutations}
        return {
            split: BoxPairs(statements, folder, self.cache_images, orders[kinds[split]])
            for split, statements in found.items()
        }

    def _read(self, name: str) -> list[Statement]:
        """The statements of a part, with pictures that exist."""
        root, file = Path(self.annotations), self.parts[name]
        path = find_file(root / name, file) or find_file(root, file)
        if path is None:
            raise FileNotFoundError(
                f"{str(root)!r} has neither '{name}/{file}' nor {file!r}, plain or gzipped; its JSON files are "
                f"{some(json_names(root))}"
            )
        found = read_nlvr(path, name)
        images = Path(self.images, name, "images")
        numbered = sorted(entry.name for entry in images.iterdir() if entry.is_dir()) if images.is_dir() else []
        folders = [f"{name}/images/{number}" for number in numbered] or [f"{name}/images"]
        paths = locate_paths([statement.images[0] for statement in found], self.images, folders, mixed=True)
        return [replace(statement, images=(place,)) for statement, place in zip(found, paths, strict=True)]
