"""Flickr8k, Flickr30k and COCO for image-text retrieval, from the files that everybody has of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from upop.data.annotations import SPLITS, Record, Split, Splits, read_splits
from upop.data.base import RetrievalDataModule
from upop.data.images import ImageFolder, check_cache, locate, verify
from upop.data.pairs import Gallery


class RetrievalData(RetrievalDataModule):
    """Image-text retrieval from an image directory and its annotations. Use a subclass, which knows the file names.

    Args:
        images: Directory of the images. The folders inside that the data set is known to come with are found.
        annotations: Karpathy's ``dataset_*.json`` (or ``.json.gz``), or a directory that holds it or BLIP's lists.
        cache_images: Decode each image once and keep it in memory (8 GiB at most); for small sets.
        verify: Decode every image before training starts, and name those that are broken. Without it, a broken image
            stops the run when its batch comes.
        train_limit: Number of training images to use, the first ones of the file. Default: all.
        **shared: As :class:`~upop.data.base.RetrievalDataModule`.
    """

    name: str
    lists: Mapping[Split, str]
    folders: Sequence[str]

    def __init__(
        self,
        images: str,
        annotations: str,
        cache_images: bool = False,
        verify: bool = False,
        train_limit: int | None = None,
        **shared: Any,  # noqa: ANN401 (the base class's own, which jsonargparse finds)
    ) -> None:
        super().__init__(**shared)
        if not hasattr(self, "lists"):
            raise TypeError(f"{type(self).__name__} names no files of its own; use upop.data.CocoRetrieval or another")
        if train_limit is not None and train_limit < 1:
            raise ValueError(f"train_limit is {train_limit!r} images; set it to 1 or more, or leave it out")
        self.images, self.annotations = images, annotations
        self.cache_images, self.verify, self.train_limit = cache_images, verify, train_limit

    def _open(self) -> dict[Split, Gallery]:
        splits: Splits = read_splits(self.annotations, self.name, self.lists)
        splits = locate(splits, self.images, self.folders)
        splits["train"] = splits["train"][: self.train_limit]
        paths = [record.image for split in SPLITS for record in splits[split]]
        if self.cache_images:
            check_cache(paths, self.images)
        if self.verify:
            verify(paths, self.images)
        folder = ImageFolder(self.images)
        return {split: FileGallery(splits[split], folder, self.cache_images) for split in SPLITS}


class FileGallery:
    """The images of one split, as files.

    Args:
        records: One per image.
        folder: Where their paths lead.
        keep: Whether to decode them all ahead.
    """

    def __init__(self, records: Sequence[Record], folder: ImageFolder, keep: bool) -> None:
        self.records, self.folder, self.keep = records, folder, keep
        self.captions = [record.captions for record in records]

    def load(self, number: int) -> Image.Image:
        """The image with this number, as RGB."""
        return self.folder.load(self.records[number].image)

    def prepare(self, processor: Any) -> None:  # noqa: ANN401
        """Decode the images, if they are to be kept in memory."""
        if self.keep:
            self.folder.keep(record.image for record in self.records)


class Flickr8kRetrieval(RetrievalData):
    """Flickr8k: 6,000 training, 1,000 validation and 1,000 test photographs with five captions each."""

    name = "flickr8k"
    lists = {"train": "flickr8k_train.json", "val": "flickr8k_val.json", "test": "flickr8k_test.json"}  # noqa: RUF012
    folders = ("", "images", "Flicker8k_Dataset", "Flickr8k_Dataset")


class Flickr30kRetrieval(RetrievalData):
    """Flickr30k: 29,000 training, 1,014 validation and 1,000 test photographs with five captions each."""

    name = "flickr30k"
    lists = {"train": "flickr30k_train.json", "val": "flickr30k_val.json", "test": "flickr30k_test.json"}  # noqa: RUF012
    folders = ("", "images", "flickr30k-images", "flickr30k_images")


class CocoRetrieval(RetrievalData):
    """COCO in Karpathy's split: 113,287 training, 5,000 validation and 5,000 test photographs, five captions each."""

    name = "coco"
    lists = {  # noqa: RUF012
        "train": "coco_karpathy_train.json", "val": "coco_karpathy_val.json", "test": "coco_karpathy_test.json",
    }  # fmt: skip
    folders = ("", "images")
