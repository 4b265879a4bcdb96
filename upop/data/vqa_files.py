"""Read questions and answers: VQA v2's files, BLIP's lists of them, and Visual Genome's.

VQA v2 keeps the questions in one file and ten answers to each in another. BLIP's lists have an entry a question, with
its image and its answers. Visual Genome has one answer a question. All become :class:`Questions`, and whatever a file
gets wrong is named before a model is built.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from upop.data.json_files import contents, inside, kind, legal, read_blip_list, read_json, text, whole
from upop.data.vqa_records import Question, Questions, gathered

VISUAL_GENOME_MASS = 0.2
"""Weight of the one answer to a question of Visual Genome; the ten of VQA v2 weigh 1 together. As the authors train."""
_Notes = tuple[int | None, tuple[str, ...], str, str]
"""Image number where it is told, answers, question type, answer type."""


def read_official(questions: Path, annotations: Path | None, image: str) -> Questions:
    """Read the questions of a part of VQA v2, and their answers where the part has any.

    Args:
        questions: File of the questions.
        annotations: File of the answers; None where the data set keeps them to itself.
        image: Path of an image, with a gap for its number, such as ``val2014/COCO_val2014_{:012d}.jpg``.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is not what it should be, or the two do not belong together.
    """
    asked = _asked(questions)
    noted = _noted(annotations) if annotations is not None else {}
    if annotations is not None:
        _check_match(asked, noted, questions, annotations)

    def rows() -> Iterator[Question]:
        for identity, (number, words) in asked.items():
            of_image, answers, *types = noted.get(identity, (number, (), "", ""))
            if of_image not in (number, None):
                raise ValueError(
                    f"question {identity} is about image {number} in {str(questions)!r}, but about image {of_image} in "
                    f"{str(annotations)!r}; take both from the same download"
                )
            yield Question(identity, words, answers, image.format(number), *types)

    return gathered(rows())


def read_blip_questions(path: Path, mass: float = 1.0) -> Questions:
    """Read one of BLIP's lists; those without answers are for the test server.

    Args:
        path: The list.
        mass: Sum of the weights of the answers to one question.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not JSON of this layout; the message names the entry.
    """
    data = read_blip_list(path)
    if not data:
        raise ValueError(f"{str(path)!r} has no questions; download it again")
    answered = [isinstance(entry, dict) and "answer" in entry for entry in data]
    if any(answered) and not all(answered):
        raise ValueError(
            f"{str(path)!r}: {answered.count(False)} of {len(data)} questions have no 'answer', the first of them in "
            f"entry {answered.index(False)}; a list has answers to all of its questions or to none"
        )

    def rows() -> Iterator[Question]:
        for number, entry in enumerate(data):
            where = f"{str(path)!r}, entry {number}"
            image = inside(text(entry, "image", where), where)
            given = entry.get("answer", [])
            answers = _answers([given] if isinstance(given, str) else given, "answer", where) if any(answered) else ()
            yield Question(whole(entry, "question_id", where), text(entry, "question", where), answers, image)

    return _unrepeated(gathered(rows(), mass), path)


def read_visual_genome(path: Path) -> Questions:
    """Read Visual Genome's ``question_answers.json``, whose images are called by their number.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not JSON of this layout; the message names the entry.
    """
    data = read_json(path, _keep_question)
    if not isinstance(data, list):
        raise ValueError(
            f"{str(path)!r} is not Visual Genome's question_answers.json: expected a list of entries, found "
            f"{contents(data)}"
        )

    def rows() -> Iterator[Question]:
        for number, entry in enumerate(data):
            where = f"{str(path)!r}, entry {number}"
            asked = entry.get("qas") if isinstance(entry, dict) else None
            if not isinstance(asked, list):
                raise ValueError(f"{where} is {contents(entry)}; expected an object with a list 'qas'")
            for one in asked:
                identity, image = whole(one, "qa_id", where), whole(one, "image_id", where)
                answers = (text(one, "answer", where),)
                yield Question(identity, text(one, "question", where), answers, f"{image}.jpg")

    found = gathered(rows(), VISUAL_GENOME_MASS)
    if not len(found):
        raise ValueError(f"{str(path)!r} has no questions; download it again")
    return _unrepeated(found, path)


def _entries(path: Path, key: str) -> list[Any]:
    """The list that an official file holds under its key."""
    data = read_json(path, _only_answer)
    if not isinstance(data, dict) or not isinstance(data.get(key), list):
        other = {"questions": "annotations", "annotations": "questions"}[key]
        swapped = isinstance(data, dict) and other in data
        advice = f"; it is a file of {other}, which go elsewhere" if swapped else ""
        raise ValueError(
            f"{str(path)!r} is not a file of {key}: expected an object with a list {key!r}, found {contents(data)}"
            f"{advice}"
        )
    if not data[key]:
        raise ValueError(f"{str(path)!r} has no {key}; download it again")
    return data[key]


def _asked(path: Path) -> dict[int, tuple[int, str]]:
    """Image number and words of each question, by its number."""
    found: dict[int, tuple[int, str]] = {}
    entries = _entries(path, "questions")
    for number, entry in enumerate(entries):
        where = f"{str(path)!r}, entry {number} of 'questions'"
        identity = whole(entry, "question_id", where)
        found[identity] = whole(entry, "image_id", where), text(entry, "question", where)
    _check_once((entry["question_id"] for entry in entries), len(entries) - len(found), path)
    return found


def _noted(path: Path) -> dict[int, _Notes]:
    """What the annotations say about each question, by its number."""
    found: dict[int, _Notes] = {}
    entries = _entries(path, "annotations")
    for number, entry in enumerate(entries):
        where = f"{str(path)!r}, entry {number} of 'annotations'"
        identity = whole(entry, "question_id", where)
        types = [entry[key] if isinstance(entry.get(key), str) else "" for key in ("question_type", "answer_type")]
        answers = _answers(entry.get("answers"), "answers", where)
        image = whole(entry, "image_id", where) if "image_id" in entry else None
        found[identity] = image, answers, types[0], types[1]
    _check_once((entry["question_id"] for entry in entries), len(entries) - len(found), path)
    return found


def _answers(given: Any, key: str, where: str) -> tuple[str, ...]:  # noqa: ANN401 (anything that JSON can hold)
    if not isinstance(given, list):
        raise ValueError(f"{where}: {key!r} is {kind(given)}; expected a list of answers")
    if not given:
        raise ValueError(f"{where} has no answers: {key!r} is empty; remove the entry or fill it in")
    answers = tuple([answer if isinstance(answer, str) else text(answer, "answer", where) for answer in given])
    legal("".join(answers), key, where)
    return answers


def _check_match(asked: dict[int, Any], noted: dict[int, Any], questions: Path, annotations: Path) -> None:
    """Refuse files of which one has what the other lacks."""
    for one, its, path, other, others in (
        ("questions", asked, questions, "annotations", noted), ("annotations", noted, annotations, "questions", asked),
    ):  # fmt: skip
        alone = sorted(its.keys() - others.keys())
        if alone:
            against = annotations if path is questions else questions
            raise ValueError(
                f"{len(alone)} of {len(its)} {one} in {str(path)!r} have no {other} in {str(against)!r}, the first of "
                f"them question ids {alone[:3]}; take both files from the same part of the same download"
            )


def _unrepeated(questions: Questions, path: Path) -> Questions:
    ids = questions.ids.tolist()
    _check_once(ids, len(ids) - len(set(ids)), path)
    return questions


def _check_once(ids: Iterable[int], repeated: int, path: Path) -> None:
    if repeated:
        twice = sorted(identity for identity, times in Counter(ids).items() if times > 1)
        raise ValueError(
            f"{str(path)!r} has {len(twice)} question ids more than once, the first of them {twice[:3]}; keep one "
            "entry each"
        )


def _only_answer(entry: dict[str, Any]) -> Any:  # noqa: ANN401 (anything that JSON can hold)
    """Keep of each of millions of answers its text alone."""
    return entry.get("answer", entry) if "answer_confidence" in entry or "answer_id" in entry else entry


def _keep_question(entry: dict[str, Any]) -> Any:  # noqa: ANN401 (anything that JSON can hold)
    """Drop from each of Visual Genome's questions the boxes that it is about."""
    if "qa_id" not in entry:
        return entry
    return {key: entry.get(key) for key in ("qa_id", "image_id", "question", "answer")}
