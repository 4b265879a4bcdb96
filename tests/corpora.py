"""One small data set on disk per annotation format, for tests of files that are not as they should be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.data.pictures import flickr8k
from tests.data.question_files import annotations_name, asked, image, noted, questions_name, vqa_v2, write
from tests.data.statement_pictures import nlvr, nlvr2
from upop.data import CocoCaptions, Daquar, Flickr8kCaptions, Flickr8kRetrieval, Nlvr, Nlvr2, VqaV2

SETTINGS = {"batch_size": 2, "eval_batch_size": 2, "num_workers": 0}
Rename = Callable[[Any, str], None]


@dataclass(frozen=True)
class Corpus:
    """A data set on disk.

    Attributes:
        folder: Where it is.
        module: Data module, with its own settings.
        files: Annotation files, relative to the folder; the first is what ``rename`` changes.
        rename: Gives the first image of a file's content another name; None where images go by numbers.
        settings: Arguments of the module, but for images and annotations.
    """

    folder: Path
    module: Callable[..., Any]
    files: tuple[str, ...]
    rename: Rename | None
    settings: dict[str, Any]

    def open(self, **more: Any) -> Any:
        """Read and check everything, as ``upop fit`` does first."""
        places = {"images": str(self.folder), "annotations": str(self.folder)}
        data = self.module(**places, **SETTINGS, **self.settings, **more)
        data.check()
        return data

    def image_named(self, name: str) -> None:
        """Give an image another name in the annotations."""
        path = self.folder / self.files[0]
        rows = path.read_text()
        lines = path.name in LINES
        content = [json.loads(row) for row in rows.splitlines()] if lines else json.loads(rows)
        assert self.rename is not None
        self.rename(content, name)
        path.write_text("\n".join(map(json.dumps, content)) if lines else json.dumps(content))


LINES = ("train.json", "dev.json", "test1.json", "test.json", "hidden.json")
"""Files with a value a line."""


def karpathy(folder: Path) -> Corpus:
    flickr8k(folder, train=4, val=2, test=2)

    def rename(content: Any, name: str) -> None:
        content["images"][0]["filename"] = name

    return Corpus(folder, Flickr8kRetrieval, ("dataset_flickr8k.json",), rename, {})


def blip_captions(folder: Path) -> Corpus:
    """BLIP's three lists."""
    flickr8k(folder, train=4, val=2, test=2)
    (folder / "dataset_flickr8k.json").unlink()
    for split, numbers in (("train", range(4)), ("val", range(4, 6)), ("test", range(6, 8))):
        rows = [{"image": f"images/{n}.png", "caption": ["a star", "a red star"], "image_id": n} for n in numbers]
        if split == "train":
            rows = [row | {"caption": "a star"} for row in rows]
        (folder / f"flickr8k_{split}.json").write_text(json.dumps(rows))
    return Corpus(folder, Flickr8kCaptions, tuple(f"flickr8k_{s}.json" for s in ("train", "val", "test")), _first, {})


def coco_captions(folder: Path) -> Corpus:
    """COCO's own files."""
    for part in ("train2017", "val2017"):
        images = [{"id": number, "file_name": f"{number:012d}.jpg"} for number in range(1, 4)]
        told = [{"id": n, "image_id": n, "caption": "a star"} for n in range(1, 4)]
        write(folder / f"captions_{part}.json", images=images, annotations=told)
        for number in range(1, 4):
            image(folder / part / f"{number:012d}.jpg", seed=number)

    def rename(content: Any, name: str) -> None:
        content["images"][0]["file_name"] = name

    return Corpus(folder, CocoCaptions, ("captions_train2017.json", "captions_val2017.json"), rename, {})


def vqa(folder: Path) -> Corpus:
    """VQA v2's official files; images go by numbers."""
    vqa_v2(folder, train=4, val=2, test=2, images=2)
    files = (questions_name("train2014"), annotations_name("train2014"), questions_name("test2015"))
    return Corpus(folder, VqaV2, files, None, {"answers_min_count": 1})


def blip_questions(folder: Path) -> Corpus:
    """BLIP's lists of VQA v2."""
    vqa_v2(folder, train=4, val=2, test=2, images=2)
    start = 0
    for part, name, count in (("train2014", "train", 4), ("val2014", "val", 2), ("test2015", "test", 2)):
        rows = []
        for number in range(start, start + count):
            question = asked(number, 2)
            row = {"question_id": question["question_id"], "question": question["question"], "dataset": "vqa"}
            row["image"] = f"{part}/COCO_{part}_{question['image_id']:012d}.jpg"
            answers = [one["answer"] for one in noted(number, 2)["answers"]]
            rows.append(row | ({"answer": answers} if name != "test" else {}))
        (folder / f"vqa_{name}.json").write_text(json.dumps(rows))
        (folder / questions_name(part)).unlink()
        start += count
    return Corpus(folder, VqaV2, ("vqa_train.json", "vqa_test.json"), _first, {"answers_min_count": 1})


def visual_genome(folder: Path) -> Corpus:
    """Its questions as more to train on, with a list of answers; images go by numbers."""
    vqa_v2(folder, train=4, val=2, test=2, images=2)
    rows = [{"qa_id": n, "image_id": n, "question": "What?", "answer": "A tree."} for n in (100, 101)]
    (folder / "question_answers.json").write_text(json.dumps([{"id": n, "qas": [row]} for n, row in enumerate(rows)]))
    (folder / "answers.json").write_text(json.dumps(["red", "two", "yes", "a star"]))
    for number in (100, 101):
        image(folder / "genome" / "VG_100K" / f"{number}.jpg")
    genome = {"train": ["train2014", "vg"], "vg_images": str(folder / "genome")}
    return Corpus(
        folder, VqaV2, ("question_answers.json", "answers.json"), None,
        genome | {"answer_list": str(folder / "answers.json")},
    )  # fmt: skip


def daquar(folder: Path) -> Corpus:
    """DAQUAR in VQA v2's layout."""
    for part, start in (("train", 0), ("test", 4)):
        numbers = range(start, start + 4)
        write(folder / f"daquar_{part}_questions.json", questions=[asked(n, 2) for n in numbers])
        write(folder / f"daquar_{part}_annotations.json", annotations=[noted(n, 2, ["red"]) for n in numbers])
    for number in (1, 2):
        image(folder / f"image{number}.jpg")
    return Corpus(folder, Daquar, ("daquar_train_questions.json", "daquar_test_annotations.json"), None, {})


def nlvr_2(folder: Path) -> Corpus:
    """NLVR2's official files."""
    nlvr2(folder, train=1, dev=1, test1=1)

    def rename(content: Any, name: str) -> None:
        content[0]["identifier"] = f"{name}-0-0-0"

    return Corpus(folder, Nlvr2, ("train.json", "dev.json", "test1.json"), rename, {})


def blip_pairs(folder: Path) -> Corpus:
    """BLIP's lists of NLVR2."""
    nlvr2(folder, train=1, dev=1, test1=1)
    for part, name in (("train", "train"), ("dev", "dev"), ("test1", "test")):
        (folder / f"{part}.json").unlink()
        place = "images/train/0" if part == "train" else part
        images = [f"{place}/{part}-0-0-img{side}.png" for side in range(2)]
        rows = [{"sentence": "Two dogs.", "label": "True", "images": images}] * 4
        (folder / f"nlvr_{name}.json").write_text(json.dumps(rows))

    def rename(content: Any, name: str) -> None:
        content[0]["images"][1] = name

    return Corpus(folder, Nlvr2, ("nlvr_train.json", "nlvr_dev.json", "nlvr_test.json"), rename, {})


def nlvr_1(folder: Path) -> Corpus:
    """NLVR v1."""
    nlvr(folder, (("train", 2), ("dev", 2), ("test", 2)))

    def rename(content: Any, name: str) -> None:
        content[0]["identifier"] = f"{name.replace('-', '_')}-0"

    return Corpus(folder, Nlvr, ("train/train.json", "dev/dev.json"), rename, {})


def _first(content: Any, name: str) -> None:
    content[0]["image"] = name


CORPORA = (
    karpathy, blip_captions, coco_captions, vqa, blip_questions, visual_genome, daquar, nlvr_2, blip_pairs, nlvr_1,
)  # fmt: skip


def copied(corpus: Corpus, folder: Path) -> Corpus:
    """The same data set in another folder, to be spoilt."""
    shutil.copytree(corpus.folder, folder)
    settings = {
        key: value.replace(str(corpus.folder), str(folder)) if isinstance(value, str) else value
        for key, value in corpus.settings.items()
    }
    return Corpus(folder, corpus.module, corpus.files, corpus.rename, settings)
