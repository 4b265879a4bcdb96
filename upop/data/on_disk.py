"""What data sets in files share: where images and annotations are, and how the images are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from upop.data.base import Content, TaskDataModule
from upop.data.images import ImageFolder, check_cache, verify


class FileDataModule(TaskDataModule[Content]):
    """A data set in files.

    Args:
        images: Directory of the images. The folders inside that the data set is known to come with are found.
        annotations: Directory of the annotation files; for images with captions also Karpathy's ``dataset_*.json`` (or
            ``.json.gz``) itself.
        cache_images: Decode each image once and keep it in memory (8 GiB at most); for small sets.
        verify: Decode every image before training starts, and name those that are broken. Without it, a broken image
            stops the run when its batch comes.
        train_limit: Number of training images (questions for VQA, statements for reasoning) to use, the first ones of
            the files. Default: all.
        **shared: As :class:`~upop.data.base.TaskDataModule`.
    """

    limited = "images"
    """What ``train_limit`` counts."""

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
        if train_limit is not None and train_limit < 1:
            raise ValueError(f"train_limit is {train_limit!r} {self.limited}; set it to 1 or more, or leave it out")
        self.images, self.annotations = images, annotations
        self.cache_images, self.verify, self.train_limit = cache_images, verify, train_limit

    def _checked_folder(self, paths: Sequence[str], root: str) -> ImageFolder:
        """Where images are loaded from, once the settings have been kept: their memory counted, each of them decoded.

        Args:
            paths: All images that the splits use, relative to ``root``; some may come more than once.
            root: Directory of the images.
        """
        paths = list(dict.fromkeys(paths))
        if self.cache_images:
            check_cache(paths, root)
        if self.verify:
            verify(paths, root)
        return ImageFolder(root)
