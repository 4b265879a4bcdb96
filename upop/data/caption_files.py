"""Galleries from the files that everybody has of Flickr8k, Flickr30k and COCO, for retrieval and captioning alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from upop.data.annotations import SPLITS, Record, Split, Splits, read_splits
from upop.data.images import FileImages, ImageFolder, locate
from upop.data.on_disk import FileDataModule
from upop.data.pairs import Gallery


class FileGallery(FileImages):
    """The images of one split, as files, with their captions.

    Args:
        records: One per image.
        folder: Where their paths lead.
        keep: Whether to decode them all ahead.
        ids: What each image is called in result files. Default: the records' own ids.
    """

    def __init__(
        self, records: Sequence[Record], folder: ImageFolder, keep: bool, ids: Sequence[int | str] | None = None
    ) -> None:
        super().__init__([record.image for record in records], folder, keep)
        self.records = records
        self.captions = [record.captions for record in records]
        self.ids: Sequence[int | str] = [record.id for record in records] if ids is None else ids


class CaptionFiles(FileDataModule[Gallery]):
    """Images with captions, in files. A subclass knows the data set and its file names."""

    name: ClassVar[str]
    """As in ``dataset_<name>.json``."""
    lists: ClassVar[Mapping[Split, str]]
    """BLIP's list of each split."""
    folders: ClassVar[Sequence[str]]
    """Where images may lie, under the directory given."""

    def __init__(self, images: str, annotations: str, **shared: Any) -> None:  # noqa: ANN401 (the base class's own)
        if not hasattr(self, "lists"):
            raise TypeError(
                f"{type(self).__name__} names no files of its own; use a subclass, such as upop.data.CocoRetrieval or "
                "upop.data.CocoCaptions"
            )
        super().__init__(images, annotations, **shared)

    def _read(self) -> Splits:
        """The annotations of all splits."""
        return read_splits(self.annotations, self.name, self.lists)

    def _id(self, record: Record) -> int | str:
        """What an image is called in result files."""
        return record.id

    def _open(self) -> dict[Split, Gallery]:
        splits = locate(self._read(), self.images, self.folders)
        splits["train"] = splits["train"][: self.train_limit]
        folder = self._checked_folder([record.image for split in SPLITS for record in splits[split]], self.images)
        return {
            split: FileGallery(records, folder, self.cache_images, [self._id(record) for record in records])
            for split, records in splits.items()
        }


class Flickr8kFiles(CaptionFiles):
    """Flickr8k's file names."""

    name = "flickr8k"
    lists: ClassVar = {"train": "flickr8k_train.json", "val": "flickr8k_val.json", "test": "flickr8k_test.json"}
    folders = ("", "images", "Flicker8k_Dataset", "Flickr8k_Dataset")


class Flickr30kFiles(CaptionFiles):
    """Flickr30k's file names."""

    name = "flickr30k"
    lists: ClassVar = {"train": "flickr30k_train.json", "val": "flickr30k_val.json", "test": "flickr30k_test.json"}
    folders = ("", "images", "flickr30k-images", "flickr30k_images")


class CocoFiles(CaptionFiles):
    """COCO's file names."""

    name = "coco"
    lists: ClassVar = {
        "train": "coco_karpathy_train.json", "val": "coco_karpathy_val.json", "test": "coco_karpathy_test.json",
    }  # fmt: skip
    folders = ("", "images")
