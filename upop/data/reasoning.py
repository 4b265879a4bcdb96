"""Visual reasoning: a sentence about two images, which is true or false.

Source: BLIP, Li et al., ICML 2022, https://arxiv.org/abs/2201.12086, its NLVR2 fine-tuning: sentences are cleaned and
cut to 40 words, and every second training pair changes sides, *left* and *right* with it. Unlike there, both images of
a pair are augmented alike, and nothing changes sides in evaluation.

Shapes: ``B`` pairs of a batch, ``L`` tokens of a sentence, ``S`` pixels along a side.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from upop.data.annotations import Split
from upop.data.base import TaskDataModule
from upop.data.sampling import Batch, Samples, drawing
from upop.data.settings import at_least
from upop.data.texts import Texts, clean_caption
from upop.data.transforms import ImageTransform, evaluation_pixels, training_transform

_SIDES = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
_SIDE = re.compile(rf"\b({'|'.join(_SIDES)})\b")


@dataclass(frozen=True, slots=True)
class Pair:
    """A sentence about two images.

    Attributes:
        identifier: Name of the pair with its sentence, as result files use it.
        sentence: As it was written.
        label: Whether it is true.
        group: What all pairs with this sentence share: consistency asks that they are all judged right.
    """

    identifier: str
    sentence: str
    label: bool
    group: str


class PairedImages(Protocol):
    """The pairs of one split."""

    @property
    def pairs(self) -> Sequence[Pair]:
        """What is said about each pair."""

    def load(self, number: int) -> tuple[Image.Image, Image.Image]:
        """The left and the right image of the pair with this number, as RGB."""

    def prepare(self, processor: Any) -> None:  # noqa: ANN401 (transformers has no common type)
        """Called before the images are loaded for a model, ahead of any worker; a second call is cheap."""


class ReasoningDataModule(TaskDataModule[PairedImages]):
    """Loaders for visual reasoning.

    All batches hold ``pixel_values (B, 2, 3, S, S)``, left image first, ``input_ids`` and ``attention_mask`` ``(B, L)``
    of the sentences, ``labels (B,)``, 1 where they are true, and ``index (B,)``, the number of the pair in its split.

    Args:
        swap: Let every second training pair change sides, and *left* and *right* in its sentence with it.
        clean_sentences: Lower-case the sentences, strip punctuation and keep ``max_words`` words, as BLIP does.
        max_words: Words of a cleaned sentence at most.
        **shared: As :class:`~upop.data.base.TaskDataModule`. With ``light`` images are not cropped.
    """

    def __init__(
        self,
        swap: bool = True,
        clean_sentences: bool = True,
        max_words: int = 40,
        **shared: Any,  # noqa: ANN401 (the base class's own, which jsonargparse finds)
    ) -> None:
        super().__init__(**shared)
        at_least(1, max_words=max_words)
        self.swap, self.clean_sentences, self.max_words = swap, clean_sentences, max_words

    def pairs(self, split: Split) -> Sequence[Pair]:
        """What is said about each pair of a split, in order.

        Raises:
            ValueError: If there is no such split.
        """
        return self._content(split).pairs

    def train_dataloader(self) -> DataLoader:
        """Batches of pairs, shuffled by the seed and the epoch."""
        content = self._ready("train")
        changed = self._sentences("train", mirror=True) if self.swap else None
        transform = training_transform(self.processor, self.augment, self.flip, whole=True)
        return self._train_loader(_TrainPairs(content, self._sentences("train"), changed, transform, self.seed))

    def _eval_loaders(self, split: Split) -> DataLoader:
        return self._eval_loader(_EvalPairs(self._ready(split), self._sentences(split), self.processor))

    def _sentences(self, split: Split, mirror: bool = False) -> Texts:
        """Sentences of a split as tokens, as they are or with their sides changed."""

        def make() -> list[str]:
            found = [pair.sentence for pair in self.pairs(split)]
            if self.clean_sentences:
                found = [clean_caption(sentence, self.max_words) for sentence in found]
            return [mirrored(sentence) for sentence in found] if mirror else found

        return self._texts(f"{split} mirrored" if mirror else split, make)


def mirrored(sentence: str) -> str:
    """A sentence that says the same once the images have changed sides.

    >>> mirrored("the left image has more dogs than the right one")
    'the right image has more dogs than the left one'
    """
    return _SIDE.sub(lambda side: _SIDES[side[0]], sentence)


@dataclass
class _Sample:
    pixels: Tensor
    sentence: Tensor
    number: int


def _batch(
    pixels: Tensor, sentences: Texts, samples: Sequence[Tensor], numbers: list[int], pairs: Sequence[Pair]
) -> Batch:
    """A batch of pairs, whether to train on or to evaluate."""
    return {
        "pixel_values": pixels,
        **sentences.batch(samples, full=False),
        "labels": torch.tensor([int(pairs[number].label) for number in numbers]),
        "index": torch.tensor(numbers),
    }


class _TrainPairs(Samples):
    """Pairs with their sentences, indexed by ``(epoch, pair)``.

    Args:
        content: Pairs and images.
        sentences: The sentences, tokenised.
        changed: The sentences with their sides changed, for every second pair; None leaves all pairs as they are.
        transform: What is done to an image; it draws from torch's global generator.
        seed: Seed of the sides and the augmentation.
    """

    def __init__(
        self, content: PairedImages, sentences: Texts, changed: Texts | None, transform: ImageTransform, seed: int
    ) -> None:
        self.content, self.sentences, self.changed = content, sentences, changed
        self.transform, self.seed = transform, seed

    def __len__(self) -> int:
        return len(self.content.pairs)

    def __getitem__(self, key: tuple[int, int] | int) -> _Sample:
        epoch, number = key if isinstance(key, tuple) else (0, key)
        sentence, pixels = self.sentences[number], []
        with drawing(self.seed, epoch, number) as start:
            for image in self.content.load(number):
                torch.manual_seed(start)  # the same crop, flip and colours for both
                pixels.append(self.transform(image))
            if self.changed is not None and torch.rand(()) < 0.5:
                sentence, pixels = self.changed[number], pixels[::-1]
        return _Sample(torch.stack(pixels), sentence, number)

    def collate(self, samples: list[_Sample]) -> Batch:
        """Samples to a batch."""
        pixels, sentences = [sample.pixels for sample in samples], [sample.sentence for sample in samples]
        numbers = [sample.number for sample in samples]
        return _batch(torch.stack(pixels), self.sentences, sentences, numbers, self.content.pairs)


class _EvalPairs(Samples):
    """The pairs of a split by their number, images prepared by the processor a batch at a time.

    Args:
        content: Pairs and images.
        sentences: The sentences, tokenised.
        processor: The model's processor.
    """

    def __init__(self, content: PairedImages, sentences: Texts, processor: Any) -> None:  # noqa: ANN401
        self.content, self.sentences, self.processor = content, sentences, processor

    def __len__(self) -> int:
        return len(self.content.pairs)

    def __getitem__(self, number: int) -> tuple[int, tuple[Image.Image, Image.Image]]:
        return number, self.content.load(number)

    def collate(self, items: list[tuple[int, tuple[Image.Image, Image.Image]]]) -> Batch:
        """Pairs to a batch."""
        pixels = evaluation_pixels(self.processor, [image for _, images in items for image in images])  # (2B, 3, S, S)
        numbers = [number for number, _ in items]
        sentences = [self.sentences[number] for number in numbers]
        return _batch(pixels.unflatten(0, (-1, 2)), self.sentences, sentences, numbers, self.content.pairs)
