"""What retrieval and captioning share: the images of each split with their captions.

Shapes: ``C`` captions of a split.
"""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

from upop.data.annotations import Split
from upop.data.base import TaskDataModule
from upop.data.pairs import Gallery, TrainCaptions
from upop.data.settings import one_of
from upop.data.texts import Texts, clean_caption


class GalleryDataModule(TaskDataModule[Gallery]):
    """Images with captions, a gallery per split.

    Args:
        train_captions: ``all``: an epoch has one sample per caption, as the authors train. ``one``: one sample per
            image, with a caption drawn anew each epoch.
        clean_captions: Lower-case the captions, strip punctuation and keep the first words, as BLIP does. CLIP and
            SigLIP take them as they are.
        **shared: As :class:`~upop.data.base.TaskDataModule`.
    """

    max_words = 50

    def __init__(
        self,
        train_captions: TrainCaptions = "all",
        clean_captions: bool = False,
        **shared: Any,  # noqa: ANN401 (the base class's own, which jsonargparse finds)
    ) -> None:
        super().__init__(**shared)
        one_of(get_args(TrainCaptions), train_captions=train_captions)
        self.train_captions: TrainCaptions = train_captions
        self.clean_captions = clean_captions

    def gallery(self, split: Split) -> Gallery:
        """Images and captions of a split.

        Raises:
            ValueError: If there is no such split.
        """
        return self._content(split)

    def eval_pairs(self, split: Split) -> Tensor:
        """Number of the image that each caption describes, ``(C,)``."""
        captions = self.gallery(split).captions
        counts = torch.tensor([len(of_image) for of_image in captions])
        return torch.arange(len(captions)).repeat_interleave(counts)

    def _caption_tokens(self, split: Split, before: str = "") -> Texts:
        """All captions of a split, in the order of the images, each with some words before it."""

        def make() -> list[str]:
            captions = [caption for of_image in self.gallery(split).captions for caption in of_image]
            if self.clean_captions:
                captions = [clean_caption(caption, self.max_words) for caption in captions]
            return [f"{before} {caption}" for caption in captions] if before else captions

        return self._texts(f"{split} {before}", make)
