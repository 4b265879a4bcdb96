"""Questions in columns are the questions that went in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upop.data.vqa_records import Question, gathered, joined

WORDS = st.sampled_from(["yes", "no", "2", "a dog", ""])
QUESTIONS = st.builds(
    Question,
    question_id=st.integers(0, 2**40), question=st.text(max_size=9), answers=st.lists(WORDS, max_size=10).map(tuple),
    image=st.sampled_from(["a.jpg", "b/a.jpg", "c.jpg"]), question_type=st.sampled_from(["", "what"]),
    answer_type=st.sampled_from(["", "what", "other"]),
)  # fmt: skip


@given(st.lists(QUESTIONS))
def test_what_goes_in_comes_out(rows):
    found = gathered(rows)
    assert list(found) == found[:] == rows
    assert found[1:-1] == rows[1:-1]
    assert found.counts.tolist() == [len(row.answers) for row in rows]
    assert list(found.images) == list(dict.fromkeys(row.image for row in rows))
    if rows:
        assert found[-1] == rows[-1]
    with pytest.raises(IndexError):
        found[len(rows)]


@given(st.lists(st.lists(QUESTIONS), min_size=1, max_size=4))
def test_parts_are_joined_in_order(parts):
    found = joined([gathered(rows) for rows in parts])
    assert list(found) == [row for rows in parts for row in rows]


@given(st.lists(QUESTIONS, min_size=1), st.integers(1, 12))
def test_the_first_few_have_no_images_of_others(rows, most):
    found = gathered(rows).first(most)
    assert list(found) == rows[:most]
    assert sorted(found.images) == sorted({row.image for row in rows[:most]})
    assert gathered(rows).first(None)[:] == rows


@given(st.lists(QUESTIONS, min_size=1), st.floats(0.1, 2))
def test_different_answers_weigh_their_share(rows, mass):
    found = gathered(rows, mass)
    for number, row in enumerate(rows):
        weights = {found.words[answer]: weight for answer, weight in found.weighted(number).items()}
        expected = {answer: mass * row.answers.count(answer) / len(row.answers) for answer in row.answers}
        assert weights == pytest.approx(expected, rel=1e-6)
        assert list(weights) == list(dict.fromkeys(row.answers))


def test_parts_keep_their_own_mass():
    row = Question(1, "?", ("yes", "no"), "a.jpg")
    found = joined([gathered([row]), gathered([row], 0.2)])
    assert [sum(found.weighted(number).values()) for number in (0, 1)] == pytest.approx([1.0, 0.2])


def test_columns_are_light():
    rows = (Question(n, "is it", ("yes",) * 10, f"{n % 1000}.jpg", "is", "yes/no") for n in range(20_000))
    found = gathered(rows)
    columns = [value for value in vars(found).values() if isinstance(value, np.ndarray)]
    assert sum(column.nbytes for column in columns) / len(found) < 80
