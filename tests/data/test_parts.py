"""Which parts are trained on and held out is the user's choice, checked before anything is read."""

import warnings

import pytest

from upop.data import Daquar
from upop.data.parts import taken
from upop.data.vqa_data import VqaData

KNOWN = ["b", "a", "ab"]


def test_parts_are_kept_in_order():
    assert taken(("b", "a"), ["ab"], ("ab",), KNOWN) == {"train": ["b", "a"], "val": ["ab"], "test": ["ab"]}


@pytest.mark.parametrize(
    ("train", "error", "message"),
    [
        ((), ValueError, r"train takes no part of the data; choose from \['a', 'ab', 'b'\]"),
        (("a", "abc"), ValueError, r"train takes 'abc'; the data set has \['a', 'ab', 'b'\]; did you mean 'ab'\?"),
        (("a", "b", "a"), ValueError, r"train takes a part twice: \['a', 'b', 'a'\]; name each once"),
        ("ab", TypeError, r"train is 'ab'; expected a list of parts, such as \[ab\]"),
    ],
)
def test_parts_that_do_not_fit_are_refused(train, error, message):
    with pytest.raises(error, match=message):
        taken(train, ["a"], ["a"], KNOWN)


def parts(**takes):
    read = []
    found = Daquar(images="a", annotations="b", **takes)._parts(lambda name: read.append(name) or name.upper())
    return found, read


def test_every_part_is_read_once():
    with pytest.warns(UserWarning, match=r"val takes \['test'\], which train takes too: its figures say nothing"):
        found, read = parts(train=["train", "test"], val=["test"], test=["train"])
    assert found == {"train": ["TRAIN", "TEST"], "val": ["TEST"], "test": ["TRAIN"]}
    assert read == ["train", "test"]


def test_splits_that_share_nothing_are_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts()


def test_a_class_without_parts_is_no_data_set():
    with pytest.raises(
        TypeError, match=r"VqaData names no files of its own; use a subclass, such as upop\.data\.VqaV2"
    ):
        VqaData(images="a", annotations="b", train=["a"], val=["a"], test=["a"])
