"""VQA v2, with Visual Genome's questions as more to train on, and DAQUAR, from their files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from upop.data.annotations import Split
from upop.data.answer_lists import check_covered, common_answers, read_answer_list
from upop.data.images import FileImages, locate_paths
from upop.data.json_files import find_file, json_names
from upop.data.parts import PartedFiles
from upop.data.settings import at_least
from upop.data.vqa import QuestionedImages, VqaDataModule
from upop.data.vqa_files import VISUAL_GENOME_MASS, read_blip_questions, read_official, read_visual_genome
from upop.data.vqa_records import Questions, joined
from upop.messages import some


@dataclass(frozen=True)
class Part:
    """Where the questions of one part of a data set are found.

    Attributes:
        questions: File of the questions.
        annotations: File of the answers; None where the data set keeps them to itself.
        image: Path of an image, with a gap for its number.
        blip: BLIP's list of the part, where there is one.
        folders: Where the images may lie, under the directory given.
    """

    questions: str
    annotations: str | None
    image: str
    blip: str | None = None
    folders: Sequence[str] = ("", "images")
    own: ClassVar[bool] = True
    """Whether the part belongs to the data set, so that its answers are candidates and its numbers are one series."""

    def read(self, folder: Path) -> Questions:
        """Read the official files from a folder, or BLIP's list where they are not all there.

        Raises:
            FileNotFoundError: If neither is there.
        """
        questions = find_file(folder, self.questions)
        annotations = find_file(folder, self.annotations) if self.annotations else None
        listed = find_file(folder, self.blip) if self.blip else None
        if questions and (annotations or not self.annotations):
            return self._official(questions, annotations)
        if listed:
            return self._listed(listed)
        there = {self.questions: questions, self.annotations: annotations}
        missing = [file for file, path in there.items() if file and not path]
        instead = f" (nor BLIP's {self.blip!r})" if self.blip else ""
        raise FileNotFoundError(
            f"{str(folder)!r} has no {' and no '.join(map(repr, missing))}{instead}, plain or gzipped; its JSON files "
            f"are {some(json_names(folder))}"
        )

    def _official(self, questions: Path, annotations: Path | None) -> Questions:
        return read_official(questions, annotations, self.image)

    def _listed(self, path: Path) -> Questions:
        return read_blip_questions(path)


class GenomePart(Part):
    """Visual Genome's questions: one file with answers, and images in several folders that it does not name."""

    own = False

    def _official(self, questions: Path, annotations: Path | None) -> Questions:
        return read_visual_genome(questions)

    def _listed(self, path: Path) -> Questions:
        return read_blip_questions(path, VISUAL_GENOME_MASS)


class VqaData(PartedFiles[QuestionedImages], VqaDataModule):
    """Questions about images, in files. Use a subclass, which knows the data set and its file names.

    Args:
        answer_list: JSON list of the candidate answers. Default: the frequent answers of the training questions.
        answers_min_count: Number of training questions that a candidate is the most common answer to, without
            ``answer_list``.
        top_answers: Number of candidates at most, the most frequent ones, without ``answer_list``. Default: no limit.
        **shared: As :class:`~upop.data.parts.PartedFiles` and :class:`~upop.data.vqa.VqaDataModule`.
    """

    limited = "questions"

    def __init__(
        self,
        *,
        answer_list: str | None = None,
        answers_min_count: int = 9,
        top_answers: int | None = None,
        **shared: Any,  # noqa: ANN401 (the base classes' own, which jsonargparse finds)
    ) -> None:
        super().__init__(**shared)
        at_least(1, answers_min_count=answers_min_count, top_answers=1 if top_answers is None else top_answers)
        self.answer_list, self.answers_min_count, self.top_answers = answer_list, answers_min_count, top_answers

    def _root(self, part: Part) -> str:
        """Directory of the images of a part."""
        return self.images

    def _open(self) -> dict[Split, QuestionedImages]:
        read = self._parts(self._read)
        own: dict[Split, list[Questions]] = {}
        for split, names in self.takes.items():
            own[split] = [part for name, part in zip(names, read[split], strict=True) if self.parts[name].own]
            _check_apart(split, names, own[split])
        splits = {split: joined(parts) for split, parts in read.items()}
        splits["train"] = splits["train"].first(self.train_limit)
        self._answers = self._candidates(joined(own["train"] or read["train"]).first(self.train_limit))
        folder = self._checked_folder([path for questions in splits.values() for path in questions.images], "")
        return {
            split: QuestionedImages(questions, FileImages(questions.images, folder, self.cache_images))
            for split, questions in splits.items()
        }

    def _read(self, name: str) -> Questions:
        """The questions of a part, with images that exist."""
        part = self.parts[name]
        found = part.read(Path(self.annotations))
        if name in self.takes["train"] and not found.counts.all():
            raise ValueError(
                f"train takes {name!r}, but {int((found.counts == 0).sum())} of its {len(found)} questions have no "
                "answers; train on parts with annotations"
            )
        root = self._root(part)
        paths = locate_paths(found.images, root, part.folders, mixed=not part.own)
        return replace(found, images=[f"{root}/{path}" for path in paths])

    def _candidates(self, questions: Questions) -> list[str]:
        """The answers to choose from, held against the questions that they are to answer."""
        if self.answer_list is None:
            found = common_answers(questions, self.answers_min_count, self.top_answers)
            advice = "set answers_min_count lower or top_answers higher"
        else:
            found = read_answer_list(Path(self.answer_list))
            advice = f"is {self.answer_list!r} made for these questions?"
        check_covered(found, questions, advice)
        return found


def _check_apart(split: Split, names: list[str], parts: list[Questions]) -> None:
    """Refuse parts that share questions: their results could not be told apart."""
    ids = np.concatenate([part.ids for part in parts]) if parts else np.array([])
    shared = len(ids) - len(np.unique(ids))
    if shared:
        raise ValueError(f"{split} takes {names}, which share {shared} questions; take one of them")


class VqaV2(VqaData):
    """VQA v2 (Goyal et al., CVPR 2017): questions about COCO's photographs, ten answers each.

    By default it trains on ``train2014`` and ``val2014`` and tests on ``test2015``, whose answers only the test server
    has, as published; add ``vg`` to ``train`` for Visual Genome's questions, which BLIP trains on too. To measure
    without the server, train on ``train2014`` alone and test on ``val2014``.

    Args:
        train: Parts to train on: ``train2014``, ``val2014``, ``vg``.
        val: Parts to validate on: ``val2014``, ``train2014``, or ``test-dev2015``, ``test2015``, which have no answers.
        test: Parts to test on, as ``val``.
        vg_images: Directory of Visual Genome's images, for ``vg``.
        **shared: As :class:`VqaData`.
    """

    parts: ClassVar[Mapping[str, Part]] = {
        **{
            f"{split}{year}": Part(
                f"v2_OpenEnded_mscoco_{split}{year}_questions.json",
                f"v2_mscoco_{split}{year}_annotations.json" if year == 2014 else None,
                f"{images}{year}/COCO_{images}{year}_{{:012d}}.jpg",
                blip,
            )
            for split, year, images, blip in (
                ("train", 2014, "train", "vqa_train.json"), ("val", 2014, "val", "vqa_val.json"),
                ("test", 2015, "test", "vqa_test.json"), ("test-dev", 2015, "test", None),
            )
        },
        "vg": GenomePart(
            "question_answers.json", None, "", "vg_qa.json", ("", "image", "images", "VG_100K", "VG_100K_2")
        ),
    }  # fmt: skip

    def __init__(
        self,
        *,
        train: Sequence[str] = ("train2014", "val2014"),
        val: Sequence[str] = ("val2014",),
        test: Sequence[str] = ("test2015",),
        vg_images: str | None = None,
        **shared: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(train=train, val=val, test=test, **shared)
        if any("vg" in names for names in self.takes.values()) and vg_images is None:
            raise ValueError(
                "a split takes 'vg', but vg_images is not set; name the directory of Visual Genome's images"
            )
        self.vg_images = vg_images

    def _root(self, part: Part) -> str:
        return self.images if part.own else str(self.vg_images)


class Daquar(VqaData):
    """DAQUAR (Malinowski and Fritz, NIPS 2014) in VQA v2's layout: questions about photographs of rooms.

    It has no validation part: val and test are both its test part unless set otherwise.

    Args:
        train: Parts to train on: ``train``, ``test``.
        val: Parts to validate on.
        test: Parts to test on.
        answers_min_count: Number of training questions that a candidate is the answer to, without ``answer_list``.
        **shared: As :class:`VqaData`.
    """

    parts: ClassVar[Mapping[str, Part]] = {
        name: Part(f"daquar_{name}_questions.json", f"daquar_{name}_annotations.json", "image{}.jpg")
        for name in ("train", "test")
    }

    def __init__(
        self,
        *,
        train: Sequence[str] = ("train",),
        val: Sequence[str] = ("test",),
        test: Sequence[str] = ("test",),
        answers_min_count: int = 1,
        **shared: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(train=train, val=val, test=test, answers_min_count=answers_min_count, **shared)
