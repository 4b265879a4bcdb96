"""What data sets in files share: images are counted and decoded ahead where that is asked for."""

import pytest

from tests.data.question_files import image
from upop.data import Daquar, Nlvr2
from upop.data import images as images_module


def module(**settings):
    return Daquar(images="a", annotations="b", **settings)


def test_each_image_is_counted_once_and_broken_ones_are_named(tmp_path, monkeypatch):
    image(tmp_path / "a.png", size=(10, 10))
    monkeypatch.setattr(images_module, "CACHE_LIMIT", 500)
    module(cache_images=True, verify=True)._checked_folder(["a.png", "a.png"], str(tmp_path))
    monkeypatch.setattr(images_module, "CACHE_LIMIT", 200)
    with pytest.raises(ValueError, match="cache_images would keep about 0.0 GiB"):
        module(cache_images=True)._checked_folder(["a.png"], str(tmp_path))
    (tmp_path / "b.png").write_bytes(b"oops")
    with pytest.raises(ValueError, match=r"1 of 2 images are broken: .*b\.png"):
        module(verify=True)._checked_folder(["a.png", "b.png"], str(tmp_path))


def test_a_limit_says_what_it_counts():
    with pytest.raises(ValueError, match="train_limit is 0 questions; set it to 1 or more, or leave it out"):
        module(train_limit=0)
    with pytest.raises(ValueError, match="train_limit is -1 statements; set it to 1 or more, or leave it out"):
        Nlvr2(images="a", annotations="b", train_limit=-1)
