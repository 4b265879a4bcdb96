"""The built-in world of shapes as a data set: retrieval that runs anywhere, with nothing to download."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from upop.data.annotations import Split
from upop.data.base import RetrievalDataModule
from upop.data.captions import describe, vocabulary
from upop.data.drawing import draw, masks
from upop.data.pairs import Gallery, TrainCaptions
from upop.data.scenes import SCENES_IN_ALL, Scene, Thing, scenes
from upop.data.transforms import Augment, image_size

__all__ = ["Scene", "ShapesRetrieval", "Thing", "describe", "draw", "masks", "scenes", "vocabulary"]


class ShapesGallery:
    """Scenes of one split, painted when they are first needed.

    Args:
        of: The scenes.
        seed: Seed of the words and the pictures.
    """

    def __init__(self, of: Sequence[Scene], seed: int) -> None:
        self.scenes, self.seed = of, seed
        self.side = 64
        self.captions = [describe(scene, seed) for scene in of]
        self._kept: dict[int, list[Image.Image]] = {}

    def load(self, number: int) -> Image.Image:
        """The picture with this number, as RGB."""
        if self.side in self._kept:
            return self._kept[self.side][number]
        return draw(self.scenes[number], self.side, self.seed)

    def prepare(self, processor: Any) -> None:  # noqa: ANN401
        """Paint all pictures (a third of a millisecond each) at the size of the processor, ahead of any worker."""
        self.side = min(image_size(processor))
        if self.side not in self._kept:
            self._kept = {self.side: [draw(scene, self.side, self.seed) for scene in self.scenes]}


class ShapesRetrieval(RetrievalDataModule):
    """Image-text retrieval in a drawn world: two or three coloured shapes and five captions per picture.

    A small CLIP learns it from scratch on a CPU in two minutes. Pictures are painted at the size that the model's
    processor wants. The splits share no scene: every held-out picture is a combination that training has not seen.

    Args:
        train_scenes: Number of training pictures.
        val_scenes: Number of validation pictures.
        test_scenes: Number of test pictures.
        batch_size: Training samples per process and step.
        eval_batch_size: Pictures, or captions, per process and evaluation step.
        num_workers: Worker processes per loader; pictures are kept in memory, so 0 is fastest.
        augment: As for photographs, ``paper``, ``light`` or ``none``; crops move things out of their place.
        flip: Mirror every second training picture. Leave it off: captions say *left* and *right*.
        text_length: Tokens per text at most, special ones included. Default: the tokenizer's own limit.
        folds: Equal consecutive galleries that each evaluated split is cut into and averaged over.
        train_captions: ``all``: an epoch has one sample per caption. ``one``: one per picture, its caption drawn anew.
        seed: Seed of the scenes, the pictures, the captions and the order; by default ``seed_everything``.
    """

    def __init__(
        self,
        train_scenes: int = 4000,
        val_scenes: int = 200,
        test_scenes: int = 200,
        batch_size: int = 64,
        eval_batch_size: int = 100,
        num_workers: int = 0,
        augment: Augment = "none",
        flip: bool = False,
        text_length: int | None = None,
        folds: int = 1,
        train_captions: TrainCaptions = "one",
        seed: int | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, augment=augment, flip=flip,
            text_length=text_length, folds=folds, train_captions=train_captions, seed=seed,
        )  # fmt: skip
        self.scenes: dict[Split, int] = {"train": train_scenes, "val": val_scenes, "test": test_scenes}
        for split, count in self.scenes.items():
            if not 1 <= count <= SCENES_IN_ALL:
                raise ValueError(f"{split}_scenes is {count!r}; set it to 1 to {SCENES_IN_ALL}")

    def _open(self) -> dict[Split, Gallery]:
        found = {
            split: ShapesGallery(scenes(split, count, self.seed), self.seed) for split, count in self.scenes.items()
        }
        return dict(found)
