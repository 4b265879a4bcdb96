"""The candidate answers of VQA: from a file, or the frequent answers of the training questions.

Papers rank about 3,128 candidates: the answers that are the most common one to nine questions or more. An answer that
is in no list can never be given, so a list that does not go with the training data is refused.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from upop.data.json_files import contents, kind, legal, read_json
from upop.data.vqa_records import Questions
from upop.messages import some

LEAST_COVERED = 0.5
"""Share of the training answers that a list has to hold."""


def read_answer_list(path: Path) -> list[str]:
    """Read a JSON list of answers; one that comes twice is kept once, with a warning.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no list of texts, or empty.
    """
    data = read_json(path)
    if not isinstance(data, list):
        raise ValueError(f"{str(path)!r} is not an answer list: expected a list of texts, found {contents(data)}")
    if not data:
        raise ValueError(f"{str(path)!r} holds zero answers; leave answer_list out to take those of the training data")
    for number, answer in enumerate(data):
        if not isinstance(answer, str) or not answer.strip():
            told = repr(answer) if isinstance(answer, str) else kind(answer)
            raise ValueError(f"{str(path)!r}, entry {number} is {told}; expected an answer")
        legal(answer, "answer", f"{str(path)!r}, entry {number}")
    found = list(dict.fromkeys(data))
    if len(found) < len(data):
        twice = [answer for answer, times in Counter(data).items() if times > 1]
        rank_zero_warn(f"{str(path)!r} lists {len(twice)} answers more than once, each is taken once: {some(twice)}")
    return found


def common_answers(questions: Questions, least: int, most: int | None) -> list[str]:
    """The answers that are the most common one to many questions, the most frequent first.

    Args:
        questions: Training questions.
        least: Number of questions that an answer has to be the most common one of.
        most: How many answers to take at most.

    Raises:
        ValueError: If none is that frequent.
    """
    counts: Counter[int] = Counter()
    for number in range(len(questions)):
        answers = questions.answers_to(number).tolist()
        if answers:
            counts[max(answers, key=answers.count)] += 1  # the first of several
    words: Counter[str] = Counter()
    for answer, times in counts.items():
        if questions.words[answer].strip():
            words[questions.words[answer]] += times
    found = sorted((word for word, times in words.items() if times >= least), key=lambda word: (-words[word], word))
    if not found:
        often = f"the most frequent one occurs {max(words.values())} times" if words else "there are no answers"
        raise ValueError(
            f"zero answers occur at least {least} times in {len(questions)} training questions ({often}); set "
            "answers_min_count lower, or give an answer_list"
        )
    return found[:most]


def covered(answers: list[str], questions: Questions) -> float:
    """Share of the answers to some questions, by weight, that a list holds. Upper and lower case are the same."""
    listed = {answer.strip().lower() for answer in answers}
    inside = np.array([word.strip().lower() in listed for word in questions.words], dtype=bool)
    weights = np.repeat(1.0 / np.maximum(1, questions.counts), questions.counts)
    return float(weights[inside[questions.answers]].sum() / max(1e-9, weights.sum()))


def check_covered(answers: list[str], questions: Questions, origin: str) -> None:
    """Refuse a list that lacks most of the training answers.

    Args:
        answers: The list.
        questions: Training questions.
        origin: Where the list is from, and what to do about it.

    Raises:
        ValueError: If it holds less than :data:`LEAST_COVERED` of them.
    """
    share = covered(answers, questions)
    if share < LEAST_COVERED - 1e-9:  # half is enough, however it is rounded
        raise ValueError(
            f"the {len(answers)} candidate answers hold {share:.1%} of the answers to the training questions, at least "
            f"{LEAST_COVERED:.0%} are needed to learn anything; {origin}"
        )
