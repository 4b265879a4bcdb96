"""The built-in world of shapes as data sets: tasks that run anywhere, with nothing to download.

:class:`ShapesDataModule` holds the settings and paints; here are retrieval and captioning, questions are in
:mod:`~upop.data.shapes_vqa`, statements about pairs in :mod:`~upop.data.shapes_reasoning`. The splits share no scene:
every held-out picture is a combination that training has not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from upop.data.annotations import SPLITS, Split
from upop.data.base import Content, TaskDataModule
from upop.data.captioning import CaptioningDataModule
from upop.data.captions import describe, vocabulary
from upop.data.drawing import draw, masks
from upop.data.pairs import Gallery, TrainCaptions
from upop.data.retrieval import RetrievalDataModule
from upop.data.scenes import SCENES_IN_ALL, Scene, Thing, scenes
from upop.data.transforms import Augment, image_size

__all__ = [
    "Scene", "ShapesCaptioning", "ShapesDataModule", "ShapesGallery", "ShapesImages", "ShapesRetrieval", "Thing",
    "describe", "draw", "masks", "scenes", "vocabulary",
]  # fmt: skip


class ShapesImages:
    """Pictures of scenes, painted when they are first needed.

    Args:
        of: The scenes.
        seed: Seed of the pictures.
    """

    def __init__(self, of: Sequence[Scene], seed: int) -> None:
        self.scenes, self.seed = of, seed
        self.side = 64
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


class ShapesGallery(ShapesImages):
    """Pictures of scenes with five captions each.

    Args:
        of: The scenes.
        seed: Seed of the words and the pictures.
    """

    def __init__(self, of: Sequence[Scene], seed: int) -> None:
        super().__init__(of, seed)
        self.captions = [describe(scene, seed) for scene in of]
        self.ids = range(len(of))


class ShapesDataModule(TaskDataModule[Content]):
    """A drawn world of two or three coloured shapes a picture, painted at the size that the model's processor wants.

    Args:
        train_scenes: Number of training pictures.
        val_scenes: Number of validation pictures.
        test_scenes: Number of test pictures.
        batch_size: Training samples per process and step.
        eval_batch_size: Samples per process and evaluation step.
        num_workers: Worker processes per loader; pictures are kept in memory, so 0 is fastest.
        augment: As for photographs, ``paper``, ``light`` or ``none``; crops move things out of their place.
        flip: Mirror every second training picture. Leave it off: texts say *left* and *right*.
        **shared: As :class:`~upop.data.base.TaskDataModule`.
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
        **shared: Any,  # noqa: ANN401 (the base class's own, which jsonargparse finds)
    ) -> None:
        super().__init__(
            batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, augment=augment, flip=flip,
            **shared,
        )  # fmt: skip
        self.scenes: dict[Split, int] = {"train": train_scenes, "val": val_scenes, "test": test_scenes}
        for split, count in self.scenes.items():
            if not 1 <= count <= SCENES_IN_ALL:
                raise ValueError(f"{split}_scenes is {count!r}; set it to 1 to {SCENES_IN_ALL}")

    def _scenes(self) -> dict[Split, list[Scene]]:
        """The scenes of each split."""
        return {split: scenes(split, self.scenes[split], self.seed) for split in SPLITS}


class ShapesGalleries(ShapesDataModule[Gallery]):
    """Pictures with captions."""

    def _open(self) -> dict[Split, Gallery]:
        return {split: ShapesGallery(of, self.seed) for split, of in self._scenes().items()}


class ShapesRetrieval(ShapesGalleries, RetrievalDataModule):
    """Image-text retrieval in a drawn world: two or three coloured shapes and five captions per picture.

    A small CLIP learns it from scratch on a CPU in two minutes.

    Args:
        train_captions: ``all``: an epoch has one sample per caption. ``one``: one per picture, its caption drawn anew.
        **shared: As :class:`ShapesDataModule` and :class:`~upop.data.retrieval.RetrievalDataModule`.
    """

    def __init__(self, train_captions: TrainCaptions = "one", **shared: Any) -> None:  # noqa: ANN401
        super().__init__(train_captions=train_captions, **shared)


class ShapesCaptioning(ShapesGalleries, CaptioningDataModule):
    """Captioning in a drawn world: five captions per picture, after a prompt.

    Args:
        train_captions: ``all``: an epoch has one sample per caption. ``one``: one per picture, its caption drawn anew.
        prompt: What every caption begins with.
        clean_captions: Cut captions to ``max_words`` words; they have no capitals and no marks.
        **shared: As :class:`ShapesDataModule` and :class:`~upop.data.captioning.CaptioningDataModule`.
    """

    def __init__(
        self,
        train_captions: TrainCaptions = "one",
        prompt: str = "a picture of ",
        clean_captions: bool = False,
        **shared: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(train_captions=train_captions, prompt=prompt, clean_captions=clean_captions, **shared)
