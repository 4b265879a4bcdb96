"""The questions of a split, kept in columns: hundreds of thousands of them in some ten megabytes.

Shapes: ``Q`` questions, ``A`` answers of all questions in a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, overload

import numpy as np


class Question(NamedTuple):
    """A question about an image, and what people answered.

    Attributes:
        question_id: Number of the question, as result files name it.
        question: What is asked, as it was written.
        answers: As they were given, ten in VQA v2; none where the data set keeps them to itself.
        image: Path of the image.
        question_type: Its first words, as VQA v2 sorts them; empty where the files do not tell.
        answer_type: ``yes/no``, ``number`` or ``other`` in VQA v2; empty where the files do not tell.
    """

    question_id: int
    question: str
    answers: tuple[str, ...]
    image: str
    question_type: str = ""
    answer_type: str = ""


@dataclass(frozen=True, eq=False)
class Questions(Sequence[Question]):
    """Questions by their number; :func:`gathered` makes the columns.

    Attributes:
        texts: What is asked, ``Q`` of them.
        ids: Number of each question, ``(Q,)``.
        image: Number in ``images`` of each question's image, ``(Q,)``.
        kinds: Numbers in ``types`` of each question's type and its answers' type, ``(Q, 2)``.
        answers: Numbers in ``words`` of all answers, ``(A,)``.
        ends: Number of answers up to and with each question's, ``(Q,)``.
        mass: Sum of the weights of each question's answers, ``(Q,)``.
        images: Paths of the images.
        words: Answers.
        types: Types of questions and of answers.
    """

    texts: Sequence[str]
    ids: np.ndarray
    image: np.ndarray
    kinds: np.ndarray
    answers: np.ndarray
    ends: np.ndarray
    mass: np.ndarray
    images: Sequence[str]
    words: Sequence[str]
    types: Sequence[str]

    def __len__(self) -> int:
        return len(self.texts)

    @overload
    def __getitem__(self, number: int) -> Question: ...
    @overload
    def __getitem__(self, number: slice) -> list[Question]: ...
    def __getitem__(self, number: int | slice) -> Question | list[Question]:
        at = range(len(self))[number]
        if isinstance(at, range):
            return [self[one] for one in at]
        question_type, answer_type = (self.types[kind] for kind in self.kinds[at])
        answers = tuple([self.words[answer] for answer in self.answers_to(at)])
        image = self.images[self.image[at]]
        return Question(int(self.ids[at]), self.texts[at], answers, image, question_type, answer_type)

    def answers_to(self, number: int) -> np.ndarray:
        """The answers to a question, as numbers in ``words``."""
        return self.answers[self.ends[number - 1] if number else 0 : self.ends[number]]

    def weighted(self, number: int) -> dict[int, float]:
        """The different answers to a question as numbers in ``words``, in the order given, each with its weight."""
        answers = self.answers_to(number).tolist()
        share = float(self.mass[number]) / max(1, len(answers))
        return {answer: answers.count(answer) * share for answer in dict.fromkeys(answers)}

    @property
    def counts(self) -> np.ndarray:
        """Number of answers to each question, ``(Q,)``."""
        return np.diff(self.ends, prepend=0)

    def first(self, most: int | None) -> Questions:
        """The first few questions, at least one, with their images; or all of them."""
        if most is None or most >= len(self):
            return self
        columns = {name: getattr(self, name)[:most] for name in ("texts", "ids", "kinds", "ends", "mass")}
        used, image = np.unique(self.image[:most], return_inverse=True)
        images = [self.images[number] for number in used]
        return replace(self, answers=self.answers[: self.ends[most - 1]], image=image, images=images, **columns)


def gathered(asked: Iterable[Question], mass: float = 1.0) -> Questions:
    """Put questions into columns.

    Args:
        asked: The questions.
        mass: Sum of the weights of the answers to one question.
    """
    images, words, types = _Numbers(), _Numbers(), _Numbers()
    texts, ids, image, kinds, answers, ends = [], [], [], [], [], []
    for question in asked:
        texts.append(question.question)
        ids.append(question.question_id)
        image.append(images[question.image])
        kinds.append((types[question.question_type], types[question.answer_type]))
        answers.extend([words[answer] for answer in question.answers])
        ends.append(len(answers))
    return Questions(
        texts=texts, ids=np.array(ids, dtype=np.int64), image=np.array(image, dtype=np.int32),
        kinds=np.array(kinds, dtype=np.int32).reshape(-1, 2), answers=np.array(answers, dtype=np.int32),
        ends=np.array(ends, dtype=np.int64), mass=np.full(len(ids), mass, dtype=np.float32),
        images=list(images), words=list(words), types=list(types),
    )  # fmt: skip


def joined(parts: Sequence[Questions]) -> Questions:
    """All questions of several parts, one part after the other."""
    if len(parts) == 1:
        return parts[0]

    def rows(name: str, table: str | None = None) -> np.ndarray:
        """A column of all parts; its numbers go on after the tables of the parts before."""
        sizes = [len(getattr(part, table)) if table else 0 for part in parts]
        starts = np.cumsum([0, *sizes[:-1]])
        columns = [getattr(part, name) for part in parts]
        return np.concatenate([column + start for column, start in zip(columns, starts, strict=True)])

    def table(name: str) -> list[str]:
        return [entry for part in parts for entry in getattr(part, name)]

    return Questions(
        texts=table("texts"), ids=rows("ids"), image=rows("image", "images"), kinds=rows("kinds", "types"),
        answers=rows("answers", "words"), ends=rows("ends", "answers"), mass=rows("mass"),
        images=table("images"), words=table("words"), types=table("types"),
    )  # fmt: skip


class _Numbers(dict[str, int]):
    """Numbers for texts, in the order in which they are first asked for."""

    def __missing__(self, text: str) -> int:
        number = self[text] = len(self)
        return number
