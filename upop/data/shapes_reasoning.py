"""Statements about two pictures of the built-in world of shapes: visual reasoning with nothing to download."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from upop.data import statements
from upop.data.annotations import SPLITS, Split
from upop.data.reasoning import Pair, PairedImages, ReasoningDataModule
from upop.data.scenes import Scene
from upop.data.settings import at_least
from upop.data.shapes import ShapesDataModule, ShapesImages


class ShapesPairs:
    """Pairs of pictures, each with a sentence that is true or false.

    Args:
        of: The scenes.
        pairs: What is said of which of them.
        seed: Seed of the pictures.
    """

    def __init__(self, of: Sequence[Scene], pairs: Sequence[statements.Pair], seed: int) -> None:
        self.pictures = ShapesImages(of, seed)
        self.sides = [(pair.left, pair.right) for pair in pairs]
        self.pairs = [
            Pair(f"{number}-{pair.left}-{pair.right}", pair.sentence, pair.label, str(pair.group))
            for number, pair in enumerate(pairs)
        ]

    def load(self, number: int) -> tuple[Image.Image, Image.Image]:
        """The left and the right picture of the pair with this number, as RGB."""
        left, right = self.sides[number]
        return self.pictures.load(left), self.pictures.load(right)

    def prepare(self, processor: Any) -> None:  # noqa: ANN401 (transformers has no common type)
        """Paint all pictures at the size of the processor."""
        self.pictures.prepare(processor)


class ShapesReasoning(ShapesDataModule[PairedImages], ReasoningDataModule):
    """Visual reasoning in a drawn world: as many true sentences as false ones, in groups of pairs with one sentence.

    Args:
        train_pairs: Number of training pairs, made of the training scenes.
        val_pairs: Number of validation pairs.
        test_pairs: Number of test pairs.
        types: Types of sentences: ``left or right`` (what one of the pictures shows), ``both``, ``one``, ``any``,
            ``none``, ``only``, ``same``, ``one and other``, ``more``, ``as many``, ``exactly``, ``at least``. Empty for
            all, which a small model does not learn in minutes.
        swap: Let every second training pair change sides, and *left* and *right* in its sentence with it. Leave it off:
            sentences also tell things apart by the sides that they lie on.
        **shared: As :class:`~upop.data.shapes.ShapesDataModule` and
            :class:`~upop.data.reasoning.ReasoningDataModule`.
    """

    def __init__(
        self,
        train_pairs: int = 8000,
        val_pairs: int = 400,
        test_pairs: int = 400,
        types: Sequence[str] = (),
        swap: bool = False,
        **shared: Any,  # noqa: ANN401 (the base classes' own, which jsonargparse finds)
    ) -> None:
        super().__init__(swap=swap, **shared)
        at_least(1, train_pairs=train_pairs, val_pairs=val_pairs, test_pairs=test_pairs)
        statements.check_types(types)
        self.types = tuple(types)
        self.pair_counts: dict[Split, int] = {"train": train_pairs, "val": val_pairs, "test": test_pairs}

    def _open(self) -> dict[Split, PairedImages]:
        of = self._scenes()
        said = {split: statements.pairs(of[split], self.pair_counts[split], self.seed, self.types) for split in SPLITS}
        return {split: ShapesPairs(of[split], said[split], self.seed) for split in SPLITS}
