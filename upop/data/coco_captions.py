"""Read COCO's own caption files: a list of images, and a list of captions that name their image by its number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from upop.data.annotations import Record
from upop.data.json_files import contents, inside, read_json, text, whole

YEARS = (2014, 2017)


def find_coco_captions(folder: Path) -> tuple[Path, Path] | None:
    """The files of train and val of one year in a folder, or nothing where there are none.

    Raises:
        FileNotFoundError: If there is only one of the two.
    """
    for year in YEARS:
        train, val = (folder / f"captions_{part}{year}.json" for part in ("train", "val"))
        there = [path.is_file() for path in (train, val)]
        if all(there):
            return train, val
        if any(there):
            missing = val if there[0] else train
            other = train if there[0] else val
            raise FileNotFoundError(
                f"{str(folder)!r} holds {other.name!r} but not {missing.name!r}; add what is missing"
            )
    return None


def read_coco_captions(path: Path) -> list[Record]:
    """Read one file; images lie in a folder of the split's name, such as ``val2017``.

    Raises:
        ValueError: If it is not JSON of this layout, a caption names an unknown image, or an image has no caption.
    """
    data = read_json(path)
    lists = ("images", "annotations")
    if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in lists):
        raise ValueError(
            f"{str(path)!r} is not a COCO caption file: expected an object with lists 'images' and 'annotations', "
            f"found {contents(data)}"
        )
    for key in lists:
        if not data[key]:
            raise ValueError(f"{str(path)!r} has no {key}; download it again")
    folder = path.stem.removeprefix("captions_")
    images = _images(data["images"], folder, str(path))
    captions: dict[int, list[str]] = {number: [] for number in images}
    unknown: set[int] = set()
    for number, entry in enumerate(data["annotations"]):
        where = f"{str(path)!r}, entry {number} of 'annotations'"
        image = whole(entry, "image_id", where)
        if image in captions:
            captions[image].append(text(entry, "caption", where))
        else:
            unknown.add(image)
    if unknown:
        raise ValueError(
            f"{str(path)!r} has captions for {len(unknown)} image ids that its list of images does not know, "
            f"the first of them {sorted(unknown)[:3]}; add the images to 'images', or remove these captions"
        )
    silent = sorted(n for n, said in captions.items() if not said or not all(caption.strip() for caption in said))
    if silent:
        raise ValueError(
            f"{str(path)!r}: {len(silent)} of {len(images)} images have no caption or an empty one, the first of "
            f"them image ids {silent[:3]}; remove them from 'images', or fill them in"
        )
    return [Record(name, tuple(captions[number]), str(number)) for number, name in images.items()]


def _images(entries: list[Any], folder: str, path: str) -> dict[int, str]:
    """Path by number of each image."""
    found: dict[int, str] = {}
    for number, entry in enumerate(entries):
        where = f"{path!r}, entry {number} of 'images'"
        name = inside(text(entry, "file_name", where), where)
        identity = whole(entry, "id", where)
        if identity in found:
            raise ValueError(f"{where}: image id {identity} comes twice, as {found[identity]!r} and {name!r}")
        found[identity] = f"{folder}/{name}"
    return found
