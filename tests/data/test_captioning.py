"""Prompted captions to train on, images to describe, and what people said about them."""

import json
from pathlib import Path

import pytest
import torch

from tests.data.loading import epoch, same
from tests.data.pictures import flickr8k, processor
from tests.data.question_files import image
from upop.data import CocoCaptions, Flickr8kCaptions
from upop.data.captioning import Reference
from upop.data.decoding import load_image
from upop.data.transforms import evaluation_pixels

SHARED = Path("../shared/data")


def module(files, **settings):
    data = Flickr8kCaptions(**{**files, "batch_size": 4, "eval_batch_size": 4, "num_workers": 0, **settings})
    data.set_processor(processor())
    return data


def rows(batch):
    kept = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    return [row[mask.bool()].tolist() for row, mask in kept]


def tokens(text):
    return processor().tokenizer(text)["input_ids"]


@pytest.mark.parametrize("prompt", ["a picture of ", "a picture of", "picture", ""])
def test_every_training_caption_comes_after_the_prompt(files, prompt):
    data = module(files, prompt=prompt)
    captions = [caption for of_image in data.gallery("train").captions for caption in of_image]
    told = prompt.split()
    expected = sorted(tokens(" ".join([*told, caption])) for caption in captions)
    found = []
    for batch in epoch(data.train_dataloader(), 0):
        assert batch["prompt_length"].shape == ()
        assert batch["prompt_length"].item() == 1 + len(told)
        for row in rows(batch):
            assert row[: len(told) + 1] == tokens(prompt.strip())[:-1]
            found.append(row)
    assert sorted(found) == expected  # 20 captions in five whole batches


def test_the_prompt_is_given_as_the_tokenizer_gives_it(files):
    found = module(files).prompt_tokens()
    assert found["input_ids"].tolist() == [tokens("a picture of")]
    assert found["attention_mask"].tolist() == [[1] * 5]


def test_one_caption_per_image_is_drawn_anew(files):
    data = module(files, train_captions="one", batch_size=5)
    first, second = (epoch(data.train_dataloader(), number) for number in (0, 1))
    assert len(first) == 2
    assert sorted(map(tuple, rows(first[0]) + rows(first[1]))) != sorted(map(tuple, rows(second[0]) + rows(second[1])))
    assert same(first, epoch(module(files, train_captions="one", batch_size=5, num_workers=2).train_dataloader(), 0))


def test_evaluation_has_every_image_once(files):
    data = module(files)
    batches = list(data.val_dataloader())
    assert [set(batch) for batch in batches] == [{"pixel_values", "index"}] * 2
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(6))
    images = [load_image(Path(files["images"], record.image)) for record in data.gallery("val").records]
    assert torch.equal(torch.cat([batch["pixel_values"] for batch in batches]), evaluation_pixels(processor(), images))


def test_references_stay_as_they_were_written(tmp_path):
    files = flickr8k(tmp_path / "data")
    path = tmp_path / "data/dataset_flickr8k.json"
    path.write_text(path.read_text().replace('"red', '"RED . ('))
    data = module(files)
    found = data.references("test")
    assert [reference.image_id for reference in found] == [str(number) for number in range(16, 22)]
    assert any("RED . (" in caption for reference in found for caption in reference.captions)
    batch = next(iter(data.train_dataloader()))
    assert processor().tokenizer.unk_token_id not in batch["input_ids"]


def test_captions_are_cut_before_the_prompt_comes(files):
    batches = epoch(module(files, max_words=1).train_dataloader(), 0)
    assert {len(row) for batch in batches for row in rows(batch)} == {1 + 3 + 1 + 1}
    with pytest.raises(ValueError, match="max_words is 0; set it to 1 or more"):
        module(files, max_words=0)


def test_a_prompt_that_leaves_no_room_is_refused(files):
    with pytest.raises(
        ValueError, match="of the prompt before a caption; choose a prompt that .* shorter than text_le"
    ):
        module(files, text_length=4).train_dataloader()


def karpathy(folder):
    names = {"train": "train2014/COCO_train2014_000000000009.jpg", "val": "val2014/COCO_val2014_000000391895.jpg"}
    names["test"] = "val2014/COCO_val2014_000000060623.jpg"
    for name in names.values():
        image(folder / name)
    return names


def test_coco_results_carry_numbers_whatever_the_annotations(tmp_path):
    names = karpathy(tmp_path)
    expected = [Reference(391895, ("a",))]
    entries = [
        {"filepath": Path(name).parent.name, "filename": Path(name).name, "split": split, "sentences": [{"raw": "a"}]}
        for split, name in names.items()
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    assert CocoCaptions(str(tmp_path), str(tmp_path)).references("val") == expected
    (tmp_path / "dataset_coco.json").unlink()
    for split, name in names.items():
        (tmp_path / f"coco_karpathy_{split}.json").write_text(json.dumps([{"image": name, "caption": ["a"]}]))
    assert CocoCaptions(str(tmp_path), str(tmp_path)).references("val") == expected


@pytest.mark.parametrize("folder", ["val2017", "images"])
def test_cocos_own_files_are_taken_where_there_are_no_others(tmp_path, folder):
    for part, number in (("train2017", 7), ("val2017", 8)):
        image(tmp_path / ("images" if folder == "images" else part) / f"{number:012d}.jpg")
        images = [{"id": number, "file_name": f"{number:012d}.jpg"}]
        told = [{"id": 1, "image_id": number, "caption": part}]
        (tmp_path / f"captions_{part}.json").write_text(json.dumps({"images": images, "annotations": told}))
    data = CocoCaptions(str(tmp_path), str(tmp_path))
    assert data.references("train") == [Reference(7, ("train2017",))]
    assert data.references("val") == data.references("test") == [Reference(8, ("val2017",))]
    (tmp_path / "captions_val2017.json").write_text(
        json.dumps({"images": images, "annotations": [{**told[0], "image_id": 9}]})
    )
    with pytest.raises(ValueError, match="has captions for 1 image ids that its list of images does not know"):
        CocoCaptions(str(tmp_path), str(tmp_path)).check()


@pytest.mark.skipif(not (SHARED / "coco_mini").is_dir(), reason=f"needs {SHARED / 'coco_mini'}")
@pytest.mark.parametrize("part", ["train2017", "val2017"])
def test_the_real_coco_in_its_own_layout(part):
    folder = SHARED / "coco_mini"
    data = CocoCaptions(str(folder), str(folder / "annotations"), batch_size=8, num_workers=0, verify=True)
    data.set_processor(processor())
    split = "train" if part == "train2017" else "test"
    ids = {int(path.stem) for path in (folder / part).iterdir()}
    assert {reference.image_id for reference in data.references(split)} <= ids
    assert data.references("val") == data.references("test")
    assert next(iter(data.train_dataloader()))["pixel_values"].shape == (8, 3, 64, 64)


@pytest.mark.skipif(not (SHARED / "flickr8k").is_dir(), reason=f"needs {SHARED / 'flickr8k'}")
def test_the_real_flickr8k():
    data = Flickr8kCaptions(str(SHARED / "flickr8k"), str(SHARED / "flickr8k"))
    assert [len(data.references(split)) for split in ("train", "val", "test")] == [6000, 1000, 1000]
    assert data.references("test")[0].image_id == "3385593926_d3e9c21170"
