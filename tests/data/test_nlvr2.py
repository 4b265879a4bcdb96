"""NLVR2 is found in its files, and a pair that is not whole is refused."""

import gzip
import json

import pytest
import torch

from tests.data.loading import epoch, same
from tests.data.pictures import processor
from tests.data.statement_pictures import nlvr2
from upop.data import Nlvr2
from upop.data.decoding import load_image
from upop.data.transforms import evaluation_pixels


@pytest.fixture
def files(tmp_path):
    return nlvr2(tmp_path)


def module(files, **settings):
    data = Nlvr2(**{**files, "batch_size": 4, "eval_batch_size": 3, "num_workers": 0, **settings})
    data.set_processor(processor())
    return data


def test_evaluation_sees_every_pair_once_with_its_images_in_order(files, tmp_path):
    data = module(files)
    batches = list(data.test_dataloader())
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(8))
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == [pair.label for pair in data.pairs("test")]
    names = [f"test1/test1-{n // 4}-{n // 2 % 2}-img{side}.png" for n in range(8) for side in range(2)]
    expected = torch.stack([evaluation_pixels(processor(), [load_image(tmp_path / name)])[0] for name in names])
    assert torch.equal(torch.cat([batch["pixel_values"] for batch in batches]), expected.view(8, 2, 3, 64, 64))


def test_official_files_are_found_gzipped_and_blips_lists_stand_in(files, tmp_path):
    official = module(files)
    path = tmp_path / "dev.json"
    (tmp_path / "dev.json.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    rows = [
        {
            "sentence": f"Sentence {n}",
            "label": "False",
            "images": [f"images/train/0/train-0-{n}-img{i}.png" for i in (0, 1)],
        }
        for n in range(2)
    ]
    (tmp_path / "nlvr_train.json").write_text(json.dumps(rows))
    (tmp_path / "train.json").unlink()
    data = module(files, batch_size=2)
    assert data.pairs("val") == official.pairs("val")
    assert len(data.pairs("train")) == 2
    assert next(iter(data.train_dataloader()))["labels"].tolist() == [0, 0]


@pytest.mark.parametrize("kept", ["images/train/0", "train/0", "."])
def test_images_may_lie_in_any_of_the_usual_folders(files, tmp_path, kept):
    target = tmp_path / "moved" / kept
    target.mkdir(parents=True)
    for path in (tmp_path / "images/train/0").iterdir():
        path.rename(target / path.name)
    if kept == ".":
        for folder in ("images/train/1", "dev", "test1"):
            for path in (tmp_path / folder).iterdir():
                path.rename(target / path.name)
        module({**files, "images": str(tmp_path / "moved")}).check()
    else:
        rows = [json.loads(line) for line in (tmp_path / "train.json").read_text().splitlines()]
        kept_rows = [row for row in rows if row["directory"] == 0]
        (tmp_path / "train.json").write_text("\n".join(map(json.dumps, kept_rows)))
        for folder in ("dev", "test1"):
            (tmp_path / folder).rename(tmp_path / "moved" / folder)
        module({**files, "images": str(tmp_path / "moved")}).check()


def test_a_pair_with_one_image_missing_is_named(files, tmp_path):
    (tmp_path / "dev/dev-1-0-img1.png").unlink()
    message = (
        r"2 of 8 pairs of part 'dev' lack one of their two images .* 'dev-1-0-0', which lacks 'dev/dev-1-0-img1\.png'"
    )
    with pytest.raises(FileNotFoundError, match=message):
        module(files).check()
    (tmp_path / "dev/dev-1-0-img0.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"2 of 8 images are missing under .*; also tried 'images' below it"):
        module(files).check()


def test_a_part_without_a_file_is_named(files, tmp_path):
    (tmp_path / "test1.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"has no 'test1\.json' \(nor BLIP's 'nlvr_test\.json'\), plain or gzipped"
    ):
        module(files).check()
    with pytest.raises(
        FileNotFoundError, match=r"has no 'test2\.json', plain or gzipped; its JSON files are \['dev\.json'"
    ):
        module(files, test=["test2"]).check()
    with pytest.raises(
        ValueError, match=r"train takes 'balanced'; the data set has \['dev', 'test1', 'test2', 'train'\]"
    ):
        Nlvr2(**files, train=["balanced"])


def test_cached_images_are_the_same_images(files):
    plain, cached = (epoch(module(files, cache_images=cache).train_dataloader(), 0) for cache in (False, True))
    assert same(plain, cached)
