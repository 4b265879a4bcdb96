"""Read what people said about the images of a data set: the Karpathy file, or BLIP's three lists.

Two layouts exist for the same splits. Karpathy's ``dataset_<name>.json`` holds all of them, one entry an image, with
its ``split`` and its ``sentences``. BLIP's lists are one file a split: one entry a caption for training, one entry an
image for validation and test. Both become :class:`Record`, and whatever a file gets wrong is named before a model is
built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from upop.data.json_files import contents, inside, json_names, kind, read_blip_list, read_json, text
from upop.messages import some

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
KARPATHY_SPLITS: Mapping[str, Split] = {"train": "train", "restval": "train", "val": "val", "test": "test"}
"""COCO's ``restval`` images are trained on, as everybody who reports on the Karpathy split does."""

Splits = dict[Split, list["Record"]]


@dataclass(frozen=True)
class Record:
    """An image and what people said about it.

    Attributes:
        image: Path of the image, relative to the image root, with forward slashes.
        captions: One caption at least.
        id: The annotation's own number or name of the image; the file's name without its ending where it gives none.
    """

    image: str
    captions: tuple[str, ...]
    id: str


def read_splits(path: str | Path, name: str, lists: Mapping[Split, str]) -> Splits:
    """Read all splits from a Karpathy file, or from a directory that holds one or BLIP's lists.

    Args:
        path: File or directory. In a directory, BLIP's lists are taken where there are any, else the Karpathy file.
        name: Data set as in ``dataset_<name>.json``.
        lists: File name of BLIP's list per split.

    Raises:
        FileNotFoundError: If the path or one of the lists is missing.
        ValueError: If a file is not what it claims to be, or repeats an image, or a split is empty.
    """
    path = Path(path)
    if path.is_file():
        if path.name in lists.values():
            raise ValueError(
                f"{str(path)!r} is the list of one split; annotations takes the directory that holds all of "
                f"{sorted(lists.values())}, or a Karpathy file such as 'dataset_{name}.json'"
            )
        return _checked(read_karpathy(path), path)
    if not path.is_dir():
        raise FileNotFoundError(f"no annotations at {str(path)!r}: there is neither a file nor a directory")
    there = json_names(path)
    present = [list_ for list_ in lists.values() if list_ in there]
    if present:
        missing = sorted(set(lists.values()) - set(present))
        if missing:
            raise FileNotFoundError(
                f"{str(path)!r} holds {sorted(present)} but not {missing}; add what is missing, or name a Karpathy file"
            )
        return _checked({split: read_blip(path / lists[split]) for split in SPLITS}, path)
    for file in (f"dataset_{name}.json", f"dataset_{name}.json.gz"):
        if file in there:
            return _checked(read_karpathy(path / file), path / file)
    wanted = [*sorted(lists.values()), f"dataset_{name}.json", f"dataset_{name}.json.gz"]
    raise FileNotFoundError(f"no annotations in {str(path)!r}: looked for {wanted}; its JSON files are {some(there)}")


def read_karpathy(path: str | Path) -> Splits:
    """Read a Karpathy file, plain or gzipped.

    Raises:
        ValueError: If it is not JSON of this layout; the message names the entry.
    """
    path = Path(path)
    data = read_json(path, _without_tokens)
    if not isinstance(data, dict) or not isinstance(data.get("images"), list):
        raise ValueError(
            f"{str(path)!r} is not a Karpathy file: expected an object with a list 'images', found {contents(data)}"
        )
    found_splits: Splits = {split: [] for split in SPLITS}
    file = repr(str(path))
    for number, entry in enumerate(data["images"]):
        where = f"{file}, entry {number} of 'images'"
        name = text(entry, "filename", where)
        split = text(entry, "split", where)
        if split not in KARPATHY_SPLITS:
            raise ValueError(f"{where}: 'split' is {split!r}; expected one of {sorted(KARPATHY_SPLITS)}")
        sentences = entry.get("sentences")
        if not isinstance(sentences, list):
            raise ValueError(f"{where}: 'sentences' is {kind(sentences)}; expected a list of objects with 'raw'")
        captions = tuple(text(sentence, "raw", f"{where}, its sentence {n}") for n, sentence in enumerate(sentences))
        folder = text(entry, "filepath", where) if entry.get("filepath") else ""
        image = inside(f"{folder}/{name}" if folder else name, where)
        given = next((entry[key] for key in ("cocoid", "imgid") if key in entry), None)
        found_splits[KARPATHY_SPLITS[split]].append(Record(image, captions, _id(given, image)))
    return found_splits


def read_blip(path: str | Path) -> list[Record]:
    """Read one of BLIP's lists: entries of one caption (training), grouped by image, or of several (val, test).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not JSON of this layout; the message names the entry.
    """
    path = Path(path)
    captions: dict[str, list[str]] = {}
    ids: dict[str, str] = {}
    file = repr(str(path))
    for number, entry in enumerate(read_blip_list(path)):
        where = f"{file}, entry {number}"
        image = text(entry, "image", where)
        if image not in captions:
            image = inside(image, where)
        caption = entry.get("caption")
        if isinstance(caption, list):
            if image in captions:
                raise ValueError(f"{where}: image {image!r} has a list of captions already; list each image once")
            captions[image] = [text({"caption": one}, "caption", where) for one in caption]
        else:
            captions.setdefault(image, []).append(text(entry, "caption", where))
        identity = _id(entry.get("image_id"), image)
        if ids.setdefault(image, identity) != identity:
            raise ValueError(f"{where}: image {image!r} has image_id {identity!r}, but had {ids[image]!r} before")
    return [Record(image, tuple(found), ids[image]) for image, found in captions.items()]


def _checked(splits: Splits, path: Path) -> Splits:
    """Refuse images that come twice or have nothing to say, and splits without images."""
    where: dict[str, Split] = {}
    owner: dict[str, str] = {}
    for split, records in splits.items():
        if not records:
            counts = {name: len(found) for name, found in splits.items()}
            raise ValueError(f"{str(path)!r} has no images in split {split!r} (images per split: {counts})")
        silent = [r.image for r in records if not r.captions or not all(caption.strip() for caption in r.captions)]
        if silent:
            raise ValueError(
                f"{str(path)!r}, split {split!r}: {len(silent)} of {len(records)} images have no caption or an empty "
                f"one: {some(silent)}; remove these entries or fill them in"
            )
        for record in records:
            if record.image in where:
                places = " and ".join(sorted({repr(where[record.image]), repr(split)}))
                raise ValueError(f"{str(path)!r} lists image {record.image!r} twice, in split {places}; list it once")
            if owner.setdefault(record.id, record.image) != record.image:
                raise ValueError(
                    f"{str(path)!r} gives id {record.id!r} to two images, {owner[record.id]!r} and {record.image!r}"
                )
            where[record.image] = split
    return splits


def _without_tokens(entry: dict[str, Any]) -> dict[str, Any]:
    """Drop the words of a sentence, which are most of a Karpathy file."""
    entry.pop("tokens", None)
    return entry


def _id(given: Any, image: str) -> str:  # noqa: ANN401 (anything that JSON can hold)
    return PurePosixPath(image).stem if given is None else str(given)
