"""Candidate answers: the frequent ones, or a list that goes with the questions."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upop.data.answer_lists import check_covered, common_answers, covered, read_answer_list
from upop.data.vqa_records import Question, gathered

WORDS = ["yes", "no", "2", "a dog", "Yes"]
ROWS = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=5), min_size=1, max_size=20)


def questions(rows):
    return gathered(Question(n, "?", tuple(row), "a.jpg") for n, row in enumerate(rows))


def written(folder, data):
    (folder / "answers.json").write_text(json.dumps(data))
    return folder / "answers.json"


@given(ROWS, st.integers(1, 3), st.none() | st.integers(1, 3))
def test_common_answers_are_the_first_of_the_most_common_of_many_questions(rows, least, most):
    counts = Counter(Counter(row).most_common(1)[0][0] for row in rows)  # ties: the first, as Counter has them
    expected = sorted((word for word in counts if counts[word] >= least), key=lambda word: (-counts[word], word))
    if expected:
        assert common_answers(questions(rows), least, most) == expected[:most]
    else:
        with pytest.raises(
            ValueError, match=f"zero answers occur at least {least} times in {len(rows)} training quest"
        ):
            common_answers(questions(rows), least, most)


@given(ROWS, st.lists(st.sampled_from(WORDS), max_size=4))
def test_covered_is_the_mean_share_of_the_people_whose_answer_is_listed(rows, listed):
    lower = {word.lower() for word in listed}
    shares = [sum(word.lower() in lower for word in row) / len(row) for row in rows]
    assert covered(listed, questions(rows)) == pytest.approx(sum(shares) / len(shares))


def test_a_list_that_lacks_most_answers_is_refused_with_its_share():
    asked = questions([["yes"] * 10, ["no"] * 10, ["2"] * 8 + ["3", "4"]])
    check_covered(["Yes ", "no"], asked, "")
    with pytest.raises(
        ValueError, match=r"the 2 candidate answers hold 26\.7% of the answers .* at least 50% .*; do it"
    ):
        check_covered(["2", "cat"], asked, "do it")


def test_blank_answers_are_no_candidates():
    assert common_answers(questions([["", "", "a"], ["b"]]), 1, None) == ["b"]
    with pytest.raises(ValueError, match=r"zero answers .*\(there are no answers\); set answers_min_count lower"):
        common_answers(questions([[""]]), 1, None)


def test_a_list_is_read_as_it_is(tmp_path):
    assert read_answer_list(written(tmp_path, ["yes", "No ", "2"])) == ["yes", "No ", "2"]
    with pytest.warns(UserWarning, match=r"lists 1 answers more than once, each is taken once: \['yes'\]"):
        assert read_answer_list(written(tmp_path, ["yes", "no", "yes"])) == ["yes", "no"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "holds zero answers; leave answer_list out"),
        ({"answers": []}, r"is not an answer list: expected a list of texts, found an object with keys \['answers'\]"),
        (["yes", 3], "entry 1 is the number 3; expected an answer"),
        (["yes", " "], "entry 1 is ' '; expected an answer"),
    ],
)
def test_a_list_that_is_none_is_refused(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        read_answer_list(written(tmp_path, data))
