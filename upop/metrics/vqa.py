"""VQA accuracy as the official evaluation computes it, and the file that the test server takes.

An answer scores by the people who gave it: ``min(1, n / 3)`` where ``n`` of them said the same, averaged over all ways
to leave one person out. Ten people who agree make 1, two of ten make 0.6.

Source: VQA (Antol et al., ICCV 2015, https://arxiv.org/abs/1505.00468), VQA v2 (Goyal et al., CVPR 2017) and
``vqaEval.py`` of github.com/GT-Vision-Lab/VQA, whose present version this follows to the letter, in its oddities too:

- Prediction and answers are normalised only where the people disagree. Where all ten said "2", "two" is wrong.
- ``'``, ``:`` and ``.`` before a digit survive; a comma between two digits anywhere makes every punctuation mark vanish
  instead of becoming a space.
- "none" counts as "0", and "somebody'd" loses its apostrophe.

Older copies (LAVIS has one) always normalise the prediction and never the articles and numbers of the answers; they
give slightly other figures.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from upop.metrics.results import check_complete, write_rows

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
NUMBER_WORDS = {word: str(number) for number, word in enumerate(NUMBERS)} | {"none": "0"}
ARTICLES = {"a", "an", "the"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# In this spelling; words are in lower case when they are looked up, so that the official table's four entries for I
# (I'm, I've, I'd've) never apply and are left out here.
CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
    that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
    weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
    why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()  # noqa: SIM905 (a list of quoted strings with quotes in them reads worse)
# Whatever lacks one of its apostrophes gets it back.
CONTRACTIONS = {
    word[: mark.start()] + word[mark.end() :]: word for word in CONTRACTED for mark in re.finditer("'", word)
} | {"somebody'd": "somebodyd"}
PERIOD = re.compile(r"\.(?!\d)")
MOST_PERIODS = 32  # the official code passes re.UNICODE, which is 32, where the count belongs
NUMBER_WITH_COMMA = re.compile(r"\d,\d")
FEWEST_ANSWERS = 4  # with one person left out, three who agree are what a full score takes


class Question(Protocol):
    """What a question has to say of itself; one without a type counts among all questions only."""

    @property
    def question_id(self) -> int: ...  # noqa: D102
    @property
    def answers(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def question_type(self) -> str | None: ...  # noqa: D102
    @property
    def answer_type(self) -> str | None: ...  # noqa: D102


@lru_cache(maxsize=2**16)
def normalise(answer: str) -> str:
    """An answer in the form in which answers are compared.

    >>> normalise("The two dogs.")
    '2 dogs'
    >>> normalise("dont know")
    "don't know"
    """
    answer = _trim(answer)
    vanish = NUMBER_WITH_COMMA.search(answer) is not None
    text = answer
    for mark in PUNCTUATION:
        text = text.replace(mark, "" if vanish or f"{mark} " in answer or f" {mark}" in answer else " ")
    words = (NUMBER_WORDS.get(word, word) for word in PERIOD.sub("", text, count=MOST_PERIODS).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Accuracy of one prediction, in percent.

    Args:
        prediction: As the model gives it.
        answers: One per person, as they stand in the annotations: ten in VQA v2.

    Raises:
        ValueError: If there are fewer than 4 answers, of which even the right one could not score 100.

    >>> accuracy("Two dogs", ["2 dogs"] * 2 + ["dogs"] * 8)
    60.0
    """
    if len(answers) < FEWEST_ANSWERS:
        raise ValueError(
            f"there are {len(answers)} answers, {list(answers)!r}; give at least {FEWEST_ANSWERS}, "
            f"and repeat one that stands alone ten times"
        )
    prediction, answers = _trim(prediction), [_trim(answer) for answer in answers]
    if len(set(answers)) > 1:
        prediction, answers = normalise(prediction), [normalise(answer) for answer in answers]
    same = answers.count(prediction)
    # Who gave the same answer is left out of the count in `same` of the ways, and stays in it in all others.
    total = same * min(1.0, (same - 1) / 3) + (len(answers) - same) * min(1.0, same / 3)
    return 100.0 * total / len(answers)


def vqa_accuracy(predictions: Mapping[int, str], questions: Iterable[Question]) -> dict[str, float]:
    """Accuracy over all questions and over those of each answer type, in percent.

    Args:
        predictions: Answer by question id, one for each of ``questions``.
        questions: Questions with the answers that people gave.

    Returns:
        ``accuracy``, and for VQA's answer types ``accuracy_yes_no``, ``accuracy_number`` and ``accuracy_other``.

    Raises:
        ValueError: If predictions and questions do not match, or a question has fewer than 4 answers.
    """
    scores = _scores(predictions, questions)
    everything = {"accuracy": _mean([score for _, score in scores])}
    by_type = _by_type([(question.answer_type, score) for question, score in scores])
    return everything | {"accuracy_" + re.sub(r"\W+", "_", name): score for name, score in by_type.items()}


def accuracy_by_question_type(predictions: Mapping[int, str], questions: Iterable[Question]) -> dict[str, float]:
    """Accuracy over the questions of each question type ("what is the", "how many", ...), in percent.

    Arguments and errors are those of :func:`vqa_accuracy`.
    """
    return _by_type([(question.question_type, score) for question, score in _scores(predictions, questions)])


def result_file(predictions: Mapping[int, str]) -> list[dict[str, Any]]:
    """What the test server takes: a list of ``{"question_id": 1, "answer": "yes"}``.

    Raises:
        TypeError: If a question id is not a whole number, or an answer not a string.

    >>> result_file({1: "yes"})
    [{'question_id': 1, 'answer': 'yes'}]
    """
    for number, answer in predictions.items():
        if not isinstance(number, int) or isinstance(number, bool) or not isinstance(answer, str):
            raise TypeError(f"question {number!r} is answered with {answer!r}; give a string for each whole number")
    return [{"question_id": number, "answer": answer} for number, answer in predictions.items()]


def write_results(path: str | Path, predictions: Mapping[int, str], questions: Iterable[Question]) -> None:
    """Write the file that the test server takes, atomically, in the order of the questions.

    Args:
        path: JSON file to write.
        predictions: Answer by question id.
        questions: All questions of the split; the server refuses files that lack one. Their answers are not looked at.

    Raises:
        ValueError: If predictions and questions do not match.
        TypeError: If a question id is not a whole number, or an answer not a string.
    """
    numbers = [question.question_id for question in questions]
    check_complete(predictions, numbers, "question")
    write_rows(path, result_file({number: predictions[number] for number in numbers}))


def _trim(answer: str) -> str:
    """The answer on one line."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _scores(predictions: Mapping[int, str], questions: Iterable[Question]) -> list[tuple[Question, float]]:
    """Every question with the accuracy of its prediction."""
    questions = list(questions)
    check_complete(predictions, [question.question_id for question in questions], "question")
    few = [question.question_id for question in questions if len(question.answers) < FEWEST_ANSWERS]
    if few:
        raise ValueError(
            f"{len(few)} of {len(questions)} questions have fewer than {FEWEST_ANSWERS} answers, the first ones "
            f"{few[:5]!r}; where the answers are secret, write the results and let the server score them"
        )
    return [(question, accuracy(predictions[question.question_id], question.answers)) for question in questions]


def _by_type(scores: Iterable[tuple[str | None, float]]) -> dict[str, float]:
    """Mean score of each type, in alphabetical order."""
    found = defaultdict(list)
    for name, score in scores:
        if name:
            found[name].append(score)
    return {name: _mean(found[name]) for name in sorted(found)}


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)
