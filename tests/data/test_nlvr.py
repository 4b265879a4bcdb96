"""NLVR v1: one picture of three boxes becomes two images of two, in each order of the boxes."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.pictures import processor
from tests.data.statement_pictures import COLOURS, nlvr
from upop.data import Nlvr

SHARED = Path("../shared/data/nlvr1")
TAKES = {"train": ["dev", "hidden"], "val": ["dev"], "test": ["test"]}
pytestmark = pytest.mark.filterwarnings("ignore:val takes")


@pytest.fixture
def files(tmp_path):
    return nlvr(tmp_path)


def module(files, **settings):
    data = Nlvr(**{**files, **TAKES, "batch_size": 4, "eval_batch_size": 5, "num_workers": 0, **settings})
    data.set_processor(processor())
    return data


def fills(image):
    """Colours of the squares in the boxes of an image, from left to right."""
    return [image.getpixel((150 * place + 40, 80)) for place in range(2)]


def test_all_orders_of_the_boxes_are_shown_and_the_middle_one_twice(files):
    data = module(files)
    content = data._content("train")
    seen = set()
    for number in range(6):
        left, right = content.load(number)
        assert left.size == right.size == (250, 100)
        assert fills(left)[1] == fills(right)[0]
        seen.add((*fills(left), fills(right)[1]))
    assert seen == set(permutations(COLOURS))
    assert len(data.pairs("train")) == 36
    assert [pair.identifier for pair in data.pairs("train")[:7]] == [*(f"dev-10-0-{n}" for n in range(6)), "dev-10-1-0"]
    assert len({pair.label for pair in data.pairs("train")[:6]}) == 1


def test_the_first_order_is_the_picture_as_it_is(files, tmp_path):
    data = module(files, permutations="first", eval_permutations="first")
    left, right = data._content("test").load(2)
    picture = Image.open(tmp_path / "test/images/0/test-11-0-0.png").convert("RGB")
    assert np.array_equal(np.asarray(left), np.asarray(picture.crop((0, 0, 250, 100))))
    assert np.array_equal(np.asarray(right), np.asarray(picture.crop((150, 0, 400, 100))))
    assert [len(data.pairs(split)) for split in ("train", "val", "test")] == [6, 4, 3]


def test_statements_of_one_presentation_are_one_group(files):
    groups = [pair.group for pair in module(files).pairs("train")]
    assert groups == ["dev-10"] * 12 + ["dev-11"] * 12 + ["hidden-10"] * 12


def test_training_images_keep_all_that_statements_count(files):
    """With ``light`` the whole image is resized, so that the grey between the boxes stays in its place."""
    data = module(files, swap=False, seed=1)
    batch = next(iter(data.train_dataloader()))
    assert batch["pixel_values"].shape == (4, 2, 3, 64, 64)
    assert data.augment == "light"
    assert not data.flip
    between = batch["pixel_values"][:, :, :, :, 32]  # the middle of what lies between two boxes
    assert between.flatten(3).std(dim=-1).max() < 1e-5
    assert sum(len(batch["index"]) for batch in data.test_dataloader()) == 18


def test_annotations_may_lie_beside_one_another(files, tmp_path):
    for part in ("dev", "hidden", "test"):
        (tmp_path / part / f"{part}.json").rename(tmp_path / f"{part}.json")
    assert len(module(files).pairs("val")) == 24


def test_what_is_missing_is_named(files, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has neither 'train/train\.json' nor 'train\.json', plain or gzipped"):
        module(files, train=["train"]).check()
    with pytest.raises(ValueError, match=r"permutations is 'some'; expected one of \['all', 'first'\]"):
        module(files, permutations="some")
    (tmp_path / "dev/images/1/dev-10-1-0.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"1 of 4 images are missing under .*\['dev/images/0/dev-10-1-0\.png'\]"
    ):
        module(files).check()


def test_a_picture_of_another_size_is_refused(files, tmp_path):
    Image.new("RGB", (300, 100)).save(tmp_path / "test/images/0/test-10-0-0.png")
    data = module(files)
    with pytest.raises(
        ValueError, match=r"test-10-0-0\.png' has 300 x 100 pixels; the pictures of NLVR v1 have 400 x 100"
    ):
        data._content("test").load(0)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs {SHARED}")
def test_the_real_pictures():
    data = module({"images": str(SHARED), "annotations": str(SHARED)}, eval_permutations="first")
    assert [len(data.pairs(split)) for split in ("train", "val", "test")] == [6 * (989 + 985), 989, 990]
    assert len({pair.group for pair in data.pairs("val")}) == 267
    left, right = data._content("val").load(0)
    assert left.crop((150, 0, 250, 100)).tobytes() == right.crop((0, 0, 100, 100)).tobytes()
    batch = next(iter(data.train_dataloader()))
    assert batch["pixel_values"].shape == (4, 2, 3, 64, 64)
