"""The built-in data set needs nothing but this repository, and its tokenizer knows every word."""

import runpy
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel

from tests.data.pictures import SHAPES, processor
from upop.data import ShapesCaptioning, ShapesRetrieval
from upop.data.captions import describe, vocabulary
from upop.data.scenes import SPLITS, scenes


def module(**settings):
    data = ShapesRetrieval(**{"train_scenes": 20, "val_scenes": 10, "test_scenes": 10, "batch_size": 5, **settings})
    data.set_processor(processor())
    return data


def test_the_committed_tokenizer_knows_every_word():
    tokenizer = processor().tokenizer
    assert set(vocabulary()) <= set(tokenizer.get_vocab())
    captions = [caption for split in SPLITS for scene in scenes(split, 300) for caption in describe(scene)]
    rows = tokenizer(captions)["input_ids"]
    assert not any(tokenizer.unk_token_id in row for row in rows)
    assert max(map(len, rows)) <= tokenizer.model_max_length
    assert tokenizer.decode(rows[0], skip_special_tokens=True) == captions[0]


def test_the_committed_model_pools_at_the_end_of_the_text():
    """With an end token of 2 transformers' CLIP would pool at the highest token number, here an arbitrary word."""
    config, tokenizer = AutoConfig.from_pretrained(SHAPES), processor().tokenizer
    assert config.text_config.eos_token_id == tokenizer.eos_token_id != 2
    assert config.text_config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert config.text_config.vocab_size == len(tokenizer)
    model = AutoModel.from_config(config).eval()
    short, long = (
        tokenizer("a red star on black", padding="max_length", max_length=length, return_tensors="pt")
        for length in (12, 32)
    )
    with torch.no_grad():
        found = [model.get_text_features(**text).pooler_output for text in (short, long)]
    assert torch.allclose(*found, atol=1e-5)


def test_the_committed_files_are_what_the_tool_writes(tmp_path):
    tool = runpy.run_path("tools/make_shapes_model.py")
    tool["write_model"](tmp_path)
    for path in SHAPES.iterdir():
        if path.suffix == ".json" and path.name != "config.json":
            assert (tmp_path / path.name).read_text() == path.read_text(), (
                f"run tools/make_shapes_model.py: {path.name}"
            )
    assert AutoConfig.from_pretrained(tmp_path).text_config.vocab_size == len(processor().tokenizer)


def test_batches_and_galleries():
    data = module(folds=2)
    data.check()
    batch = next(iter(data.train_dataloader()))
    assert batch["pixel_values"].shape == (5, 3, 64, 64)
    images, texts = data.val_dataloader()
    assert sum(len(batch["index"]) for batch in images) == 10
    assert sum(len(batch["index"]) for batch in texts) == 50
    assert data.eval_pairs("val").tolist() == [image for image in range(10) for _ in range(5)]
    assert len(data.train_dataloader()) == 4
    assert len(module(train_captions="all").train_dataloader()) == 20


def test_training_pictures_are_those_of_the_scenes_with_or_without_workers():
    found = [list(module(num_workers=workers, augment="light").train_dataloader()) for workers in (0, 2)]
    for one, other in zip(*found, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_pictures_are_painted_at_the_size_of_the_model():
    data = module()
    own = processor()
    own.image_processor.size, own.image_processor.crop_size = {"shortest_edge": 48}, {"height": 48, "width": 48}
    data.set_processor(own)
    assert next(iter(data.train_dataloader()))["pixel_values"].shape == (5, 3, 48, 48)
    assert data.gallery("train").load(0).size == (48, 48)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="test_scenes is 0; set it to 1 to 100000"):
        ShapesRetrieval(test_scenes=0)
    with pytest.raises(ValueError, match="folds is 3, but split 'val' has 10 images"):
        module(folds=3).check()


def test_the_data_reads_and_writes_no_file(tmp_path, monkeypatch):
    data = module()
    monkeypatch.chdir(tmp_path)
    data.check()
    next(iter(data.train_dataloader()))
    assert not list(Path(tmp_path).iterdir())


def test_pictures_are_captioned_after_a_prompt():
    data = ShapesCaptioning(train_scenes=10, val_scenes=4, test_scenes=4, batch_size=5)
    data.set_processor(processor())
    tokenizer = processor().tokenizer
    batch = next(iter(data.train_dataloader()))
    texts = tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    captions = {f"a picture of {caption}" for scene in scenes("train", 10) for caption in describe(scene)}
    assert all(any(caption.startswith(text) for caption in captions) for text in texts)  # the longest are cut
    assert len(captions & set(texts)) > 2
    assert [reference.image_id for reference in data.references("val")] == [0, 1, 2, 3]
    assert data.references("test")[2].captions == describe(scenes("test", 4)[2])
    assert len(data.train_dataloader()) == 2
    assert sum(len(batch["index"]) for batch in data.val_dataloader()) == 4
