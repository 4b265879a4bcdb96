"""Find, check and load the images of a data set.

All images are looked for by listing each directory once, not by asking the disk about each file, so that a hundred
thousand of them are checked in a second. Nothing that annotations say leads elsewhere: names go nowhere but below the
image root (:func:`~upop.data.json_files.inside`), and an image that is a link to another place is refused. Folders may
be links, for they are the user's own layout: a data set on another disk stays usable.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from rich.progress import track

from upop.data.annotations import Splits
from upop.data.decoding import load_image, opened

CACHE_LIMIT = 8 * 2**30
"""Bytes that decoded images may take in memory."""
_SAMPLED = 64


class Listing:
    """Which files are under a root, one directory listing at a time and each only once."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._names: dict[str, dict[str, bool]] = {}
        """Per folder, what is in it, and whether it is a link."""
        self._real: dict[str, Path] = {}
        """Where folders are once all links are followed."""

    def __contains__(self, path: str) -> bool:
        folder, _, name = path.rpartition("/")
        return name in self._entries(folder)

    def strays(self, path: str) -> Path | None:
        """Where a link leads that is neither below the root nor below its own folder; ``None`` for all else."""
        folder, _, name = path.rpartition("/")
        if not self._entries(folder).get(name):
            return None
        found = Path(os.path.realpath(self.root / path))
        return None if any(found.is_relative_to(self._home(home)) for home in ("", folder)) else found

    def _home(self, folder: str) -> Path:
        if folder not in self._real:
            self._real[folder] = Path(os.path.realpath(self.root / folder))
        return self._real[folder]

    def _entries(self, folder: str) -> dict[str, bool]:
        if folder not in self._names:
            self._names[folder] = self._list(folder)
        return self._names[folder]

    def _list(self, folder: str) -> dict[str, bool]:
        try:
            with os.scandir(self.root / folder) as entries:
                return {entry.name: entry.is_symlink() for entry in entries}
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
                return {}
            raise


def locate(splits: Splits, root: str | Path, folders: Sequence[str]) -> Splits:
    """Find the images of all splits, as :func:`locate_paths`, and return the records with paths that exist."""
    images = list(dict.fromkeys(record.image for records in splits.values() for record in records))
    found = dict(zip(images, locate_paths(images, root, folders), strict=True))
    moved = {image: path for image, path in found.items() if path != image}
    return {
        split: [replace(record, image=moved[record.image]) if record.image in moved else record for record in records]
        for split, records in splits.items()
    }


def locate_paths(images: Sequence[str], root: str | Path, folders: Sequence[str], mixed: bool = False) -> list[str]:
    """Find the folder that the images lie in, and return their paths under ``root``.

    Annotations name images with or without folders, and people keep them with or without a folder more. Each of the
    ``folders`` is tried with the path as it stands and with the bare file name; the layout that finds most images is
    taken for all of them, the first one where several find as many.

    Args:
        images: Paths, as the annotations name them.
        root: Directory to look in.
        folders: Folders under ``root`` to try, in order; ``""`` is the root itself.
        mixed: Look for the images that this layout lacks in all others, for data sets that come in several folders
            while their annotations name none.

    Raises:
        FileNotFoundError: If the root is no directory, or an image is missing.
        ValueError: If an image is a link to a file elsewhere.
    """
    paths, missing = search_paths(images, root, folders, mixed)
    refuse_missing(paths, missing, root, folders)
    return paths


def search_paths(
    images: Sequence[str], root: str | Path, folders: Sequence[str], mixed: bool = False
) -> tuple[list[str], list[str]]:
    """As :func:`locate_paths`, but return what is missing as well, rather than refuse it.

    Returns:
        The paths, and those of them that do not exist.

    Raises:
        FileNotFoundError: If the root is no directory.
        ValueError: If an image is a link to a file that is neither below the root nor below the image's own folder.
            The folders themselves may be links: they are the user's, while the name comes from the annotations.
    """
    if not Path(root).is_dir():
        raise FileNotFoundError(
            f"no image directory at {str(root)!r}; images takes the directory that holds the images"
        )
    listing = Listing(root)
    best: Sequence[str] = ()
    most, tried = -1, []
    for paths in _layouts(images, folders):
        tried.append(paths)
        found = sum(path in listing for path in paths)
        if found > most:
            best, most = paths, found
        if most == len(images):  # no layout finds more
            break
    if mixed and most < len(images):
        ways = zip(best, *tried, strict=True)  # per image: the best path, and every other
        best = [next((path for path in paths if path in listing), paths[0]) for paths in ways]
    _refuse_strays(images, best, listing)
    return list(best), [path for path in best if path not in listing]


def _layouts(images: Sequence[str], folders: Sequence[str]) -> Iterator[list[str]]:
    """Paths of all images in every folder, as the annotations name them, and then by their bare file names."""
    for folder in folders:
        yield [f"{folder}/{image}" if folder else image for image in images]
    bare = [image.rpartition("/")[2] for image in images]
    if bare != images and len(set(bare)) == len(bare):
        for folder in folders:
            yield [f"{folder}/{name}" if folder else name for name in bare]


def _refuse_strays(images: Sequence[str], paths: Sequence[str], listing: Listing) -> None:
    for image, path in zip(images, paths, strict=True):
        elsewhere = listing.strays(path)
        if elsewhere is not None:
            raise ValueError(
                f"image {image!r} of the annotations is {str(listing.root / path)!r}, a link that leaves the image "
                f"root for {str(elsewhere)!r}; copy the file there, or link its whole folder"
            )


def refuse_missing(paths: Sequence[str], missing: Sequence[str], root: str | Path, folders: Sequence[str]) -> None:
    """Refuse images that :func:`search_paths` did not find.

    Raises:
        FileNotFoundError: If there are any.
    """
    if missing:
        tried = " and ".join(sorted({repr(folder) for folder in folders if folder}))
        also = f"; also tried {tried} below it" if tried else ""
        raise FileNotFoundError(
            f"{len(missing)} of {len(paths)} images are missing under {str(Path(root))!r}, the first of them "
            f"{missing[:3]}{also}. Download them, or set images to the directory that holds them"
        )


def verify(paths: Iterable[str], root: str | Path) -> None:
    """Decode every image once, with a progress bar.

    Raises:
        ValueError: If some cannot be decoded: how many, and the first ones with the reason.
    """
    broken = []
    paths = list(paths)
    for path in track(paths, description="decoding images"):
        try:
            load_image(Path(root) / path)
        except (ValueError, FileNotFoundError) as error:
            broken.append(str(error))
    if broken:
        raise ValueError(f"{len(broken)} of {len(paths)} images are broken: " + "; ".join(broken[:5]))


def decoded_bytes(paths: Sequence[str], root: str | Path) -> int:
    """About how many bytes the decoded images take, from the headers of an even sample of them."""
    sampled = paths[:: max(1, len(paths) // _SAMPLED)]
    sizes = []
    for path in sampled:
        with opened(Path(root) / path) as image:
            sizes.append(image.size[0] * image.size[1] * 3)
    return sum(sizes) * len(paths) // len(sizes)


def check_cache(paths: Sequence[str], root: str | Path) -> None:
    """Refuse to keep more decoded images in memory than :data:`CACHE_LIMIT`.

    Raises:
        ValueError: If they take more.
    """
    needed = decoded_bytes(paths, root)
    if needed > CACHE_LIMIT:
        raise ValueError(
            f"cache_images would keep about {needed / 2**30:.1f} GiB of decoded images in memory; at most "
            f"{CACHE_LIMIT / 2**30:g} GiB are allowed. Set cache_images to false"
        )


class ImageFolder:
    """Images under a root by their relative path, decoded at each call or kept in memory.

    Args:
        root: Directory that the paths are relative to.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._kept: dict[str, np.ndarray] = {}

    def keep(self, paths: Iterable[str]) -> None:
        """Decode the images now and keep their bytes; call it before workers start, so that they share them."""
        wanted = [path for path in paths if path not in self._kept]
        for path in track(wanted, description="reading images", disable=not wanted):
            self._kept[path] = np.asarray(load_image(self.root / path))

    def load(self, path: str) -> Image.Image:
        """One image as RGB."""
        kept = self._kept.get(path)
        return load_image(self.root / path) if kept is None else Image.fromarray(kept)


class Images(Protocol):
    """Images by their number: files, or painted ones."""

    def load(self, number: int) -> Image.Image:
        """The image with this number, as RGB."""

    def prepare(self, processor: Any) -> None:  # noqa: ANN401 (transformers has no common type)
        """Called before the images are loaded for a model, ahead of any worker; a second call is cheap."""


class FileImages:
    """Images of one split, as files.

    Args:
        paths: One per image.
        folder: Where they lead.
        keep: Whether to decode them all ahead.
    """

    def __init__(self, paths: Sequence[str], folder: ImageFolder, keep: bool) -> None:
        self.paths, self.folder, self.keep = paths, folder, keep

    def load(self, number: int) -> Image.Image:
        """The image with this number, as RGB."""
        return self.folder.load(self.paths[number])

    def prepare(self, processor: Any) -> None:  # noqa: ANN401
        """Decode the images, if they are to be kept in memory."""
        if self.keep:
            self.folder.keep(self.paths)
