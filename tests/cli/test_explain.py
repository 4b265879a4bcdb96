"""Errors of libraries in one line."""

from __future__ import annotations

import pytest

from upop.cli.explain import explain, one_line
from upop.cli.recipe import build_parser


def test_an_error_is_one_line() -> None:
    assert one_line(ValueError("  first\n   second\tthird ")) == "first second third"


def test_of_an_error_in_a_worker_only_what_went_wrong_is_said() -> None:
    text = (
        "Caught OSError in DataLoader worker process 1.\nOriginal Traceback (most recent call last):\n"
        "  File \"x.py\", line 3, in f\nOSError: image 'a.jpg' cannot be decoded:\n truncated"
    )
    assert one_line(OSError(text)) == "image 'a.jpg' cannot be decoded: truncated"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "unrecognized arguments: --search.remuved 0.5",
            "unrecognized arguments: --search.remuved 0.5; did you mean 'removed'?",
        ),
        ("Expected a <class 'float'>. Got value: x", "Expected float. Got value: x"),
        ("Expected a typing.Literal['a', 'b']. Got value: c", "Expected one of ['a', 'b']. Got value: c"),
        (
            "module 'upop.tasks' has no attribute 'Captionin'",
            "module 'upop.tasks' has no attribute 'Captionin'; did you mean 'Captioning'?",
        ),
        (
            "Does not validate against any of the Union subtypes Subtypes: [<class 'int'>, NoneType] Errors: "
            "- Expected a <class 'int'> - Expected a <class 'NoneType'> Given value type: <class 'str'> Given value: x",
            "Expected int. Got value: x",
        ),
        (
            "Does not validate against any of the Union subtypes Subtypes: [A, NoneType] Errors: "
            "- batch_size is 0; set it to 1 or more - Expected a <class 'NoneType'>",
            "batch_size is 0; set it to 1 or more",
        ),
    ],
)
def test_messages_of_the_parser(message: str, expected: str) -> None:
    assert explain(build_parser(), message) == expected


def test_a_class_like_no_other_is_answered_with_all_there_are() -> None:
    line = explain(build_parser(), "module 'upop.tasks' has no attribute 'Qqqq'")
    assert "; upop has [" in line
    assert "'Retrieval'" in line
