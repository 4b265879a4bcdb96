"""Statements of several parts become splits, limited where that is asked for."""

import pytest

from tests.data.statement_pictures import nlvr2
from upop.data import Nlvr2


def test_parts_follow_one_another_and_a_limit_takes_the_first(tmp_path):
    files = nlvr2(tmp_path)
    data = Nlvr2(**files, train=["dev", "train"], val=["test1"], train_limit=10)
    names = [pair.identifier for pair in data.pairs("train")]
    assert len(names) == 10
    assert names[7:9] == ["dev-1-1-1", "train-0-0-0"]
    assert len(data.pairs("test")) == 8


def test_images_are_verified_once_each(tmp_path):
    files = nlvr2(tmp_path)
    (tmp_path / "dev/dev-0-0-img1.png").write_bytes(b"oops")
    with pytest.raises(ValueError, match=r"1 of 28 images are broken: .*dev-0-0-img1\.png"):
        Nlvr2(**files, verify=True).check()
