"""Image-text retrieval: batches of pairs to train on, galleries to rank in; Flickr8k, Flickr30k and COCO.

:class:`RetrievalDataModule` makes the batches; :class:`RetrievalData` opens the files that everybody has, and
:class:`~upop.data.shapes.ShapesRetrieval` paints its own.

Shapes: ``B`` samples of a batch, ``L`` tokens, ``S`` pixels along a side.
"""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from upop.data.annotations import Split
from upop.data.caption_files import CaptionFiles, CocoFiles, Flickr8kFiles, Flickr30kFiles
from upop.data.galleries import GalleryDataModule
from upop.data.pairs import EvalCaptions, EvalImages, Gallery, TrainPairs
from upop.data.settings import at_least
from upop.data.transforms import training_transform


class RetrievalDataModule(GalleryDataModule):
    """Loaders for image-text retrieval over a gallery per split.

    Training batches hold ``pixel_values (B, 3, S, S)``, ``input_ids`` and ``attention_mask`` ``(B, L)``, and
    ``image_index (B,)``, the number of the image in its split: equal numbers are no negatives of each other. Evaluation
    encodes each image and each caption once: validation and test have two loaders each, images first (``pixel_values``,
    ``index``), then captions (``input_ids``, ``attention_mask``, ``index``, and ``image_index``, the image described).

    Args:
        folds: Equal consecutive galleries, in file order, that each evaluated split is cut into and averaged over.
            COCO's "1K" protocol is 5.
        **shared: As :class:`~upop.data.galleries.GalleryDataModule`.
    """

    def __init__(self, folds: int = 1, **shared: Any) -> None:  # noqa: ANN401 (the base class's own)
        super().__init__(**shared)
        at_least(1, folds=folds)
        self.folds = folds

    def _fit_settings(self, contents: dict[Split, Gallery]) -> None:
        for split in ("val", "test"):
            number = len(contents[split].captions)
            if number % self.folds:
                fitting = [n for n in range(1, min(number, 100) + 1) if number % n == 0]
                raise ValueError(
                    f"folds is {self.folds}, but split {split!r} has {number} images, which do not fall into "
                    f"{self.folds} equal galleries; choose one of {fitting}"
                )

    def train_dataloader(self) -> DataLoader:
        """Batches of image-caption pairs, shuffled by the seed and the epoch."""
        gallery, texts = self._ready("train"), self._caption_tokens("train")
        transform = training_transform(self.processor, self.augment, self.flip)
        owner = self.eval_pairs("train")
        return self._train_loader(TrainPairs(gallery, texts, owner, transform, self.train_captions, self.seed))

    def _eval_loaders(self, split: Split) -> list[DataLoader]:
        """Images of a split, then its captions."""
        gallery, texts = self._ready(split), self._caption_tokens(split)
        captions = EvalCaptions(texts, self.eval_pairs(split))
        return [self._eval_loader(EvalImages(gallery, self.processor)), self._eval_loader(captions, workers=0)]


class RetrievalData(CaptionFiles, RetrievalDataModule):
    """Image-text retrieval from an image directory and its annotations. Use a subclass, which knows the file names."""


class Flickr8kRetrieval(Flickr8kFiles, RetrievalData):
    """Flickr8k: 6,000 training, 1,000 validation and 1,000 test photographs with five captions each."""


class Flickr30kRetrieval(Flickr30kFiles, RetrievalData):
    """Flickr30k: 29,000 training, 1,014 validation and 1,000 test photographs with five captions each."""


class CocoRetrieval(CocoFiles, RetrievalData):
    """COCO in Karpathy's split: 113,287 training, 5,000 validation and 5,000 test photographs, five captions each."""
