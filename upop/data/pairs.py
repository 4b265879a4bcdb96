"""What the loaders of galleries index: training pairs, the images of a gallery, and its captions.

Shapes: ``B`` samples of a batch, ``C`` captions of a split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor

from upop.data.images import Images
from upop.data.sampling import Batch, Samples, drawing
from upop.data.texts import Texts
from upop.data.transforms import ImageTransform, evaluation_pixels

TrainCaptions = Literal["all", "one"]


class Gallery(Images, Protocol):
    """The images of one split with their captions."""

    @property
    def captions(self) -> Sequence[tuple[str, ...]]:
        """Captions per image."""

    @property
    def ids(self) -> Sequence[int | str]:
        """What each image is called in result files."""


@dataclass
class _Sample:
    pixels: Tensor
    text: Tensor
    image: int


class TrainPairs(Samples):
    """Pairs of an image and one of its captions, indexed by ``(epoch, sample)``.

    Args:
        gallery: Where the images come from.
        texts: All captions, tokenised, in the order of the images.
        owner: Number of the image of each caption, ``(C,)``.
        transform: What is done to an image; it draws from torch's global generator.
        captions: ``all``: sample ``n`` is caption ``n``. ``one``: sample ``n`` is image ``n`` with one of its captions.
        seed: Seed of the captions drawn and of the augmentation.
    """

    def __init__(
        self,
        gallery: Gallery,
        texts: Texts,
        owner: Tensor,
        transform: ImageTransform,
        captions: TrainCaptions,
        seed: int,
    ) -> None:
        self.gallery, self.texts, self.transform = gallery, texts, transform
        self.owner, self.one, self.seed = owner, captions == "one", seed
        self.counts = torch.bincount(owner)
        self.first = self.counts.cumsum(0) - self.counts

    def __len__(self) -> int:
        return len(self.counts) if self.one else len(self.owner)

    def __getitem__(self, key: tuple[int, int] | int) -> _Sample:
        epoch, sample = key if isinstance(key, tuple) else (0, key)
        with drawing(self.seed, epoch, sample):
            caption = sample
            if self.one:
                caption = int(self.first[sample]) + int(torch.randint(int(self.counts[sample]), ()))
            image = int(self.owner[caption])
            return _Sample(self.transform(self.gallery.load(image)), self.texts[caption], image)

    def collate(self, samples: list[_Sample]) -> Batch:
        """Samples to a batch."""
        return {
            "pixel_values": torch.stack([sample.pixels for sample in samples]),
            **self.texts.batch([sample.text for sample in samples], full=False),
            "image_index": torch.tensor([sample.image for sample in samples]),
        }


class EvalImages(Samples):
    """The images of a split by their number, prepared by the processor a batch at a time.

    Args:
        gallery: Where the images come from.
        processor: The model's processor.
    """

    def __init__(self, gallery: Gallery, processor: Any) -> None:  # noqa: ANN401
        self.gallery, self.processor = gallery, processor

    def __len__(self) -> int:
        return len(self.gallery.captions)

    def __getitem__(self, number: int) -> tuple[int, Image.Image]:
        return number, self.gallery.load(number)

    def collate(self, items: list[tuple[int, Image.Image]]) -> Batch:
        """Images to a batch."""
        pixels = evaluation_pixels(self.processor, [image for _, image in items])
        return {"pixel_values": pixels, "index": torch.tensor([number for number, _ in items])}


class EvalCaptions(Samples):
    """The captions of a split by their number, all padded to the same length.

    Args:
        texts: All captions, tokenised.
        owner: Number of the image of each caption, ``(C,)``.
    """

    def __init__(self, texts: Texts, owner: Tensor) -> None:
        self.texts, self.owner = texts, owner

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, number: int) -> int:
        return number

    def collate(self, numbers: list[int]) -> Batch:
        """Captions to a batch."""
        index = torch.tensor(numbers)
        rows = [self.texts[number] for number in numbers]
        return {**self.texts.batch(rows, full=True), "index": index, "image_index": self.owner[index]}
