"""The built-in statements as a data set: as many true as false, held-out pictures, groups of one sentence."""

from itertools import pairwise

import pytest
import torch

from tests.data.loading import epoch, same
from tests.data.pictures import processor
from upop.data import ShapesReasoning
from upop.data.drawing import draw
from upop.data.scenes import scenes
from upop.data.statements import pairs
from upop.data.transforms import evaluation_pixels


def module(**settings):
    few = {"train_scenes": 60, "val_scenes": 40, "test_scenes": 40, "train_pairs": 24, "val_pairs": 8, "test_pairs": 8}
    data = ShapesReasoning(**{**few, "batch_size": 8, "eval_batch_size": 4, **settings})
    data.set_processor(processor())
    return data


def test_pairs_are_those_of_the_language_with_their_pictures():
    data = module(seed=2)
    of = scenes("test", 40, 2)
    expected = pairs(of, 8, 2)
    found = data.pairs("test")
    assert [(pair.sentence, pair.label) for pair in found] == [(one.sentence, one.label) for one in expected]
    assert len({pair.identifier for pair in found}) == 8
    for one, other in pairwise(found):
        assert (one.group == other.group) == (one.sentence == other.sentence)
    pictures = [draw(of[side], 64, 2) for one in expected for side in (one.left, one.right)]
    pixels = torch.cat([batch["pixel_values"] for batch in data.test_dataloader()])
    assert torch.equal(pixels.flatten(0, 1), evaluation_pixels(processor(), pictures))


def test_half_of_the_statements_are_true():
    data = module()
    labels = torch.cat([batch["labels"] for batch in data.train_dataloader()])
    assert labels.tolist().count(1) == 12


def test_everything_follows_from_the_seed():
    one, two, other = (epoch(module(seed=seed).train_dataloader(), 0) for seed in (1, 1, 2))
    assert same(one, two)
    assert not same(one, other)


def test_sentences_of_some_types_only():
    sentences = {pair.sentence for pair in module(types=["left or right"]).pairs("train")}
    assert sentences
    assert all(" left picture" in sentence or " right picture" in sentence for sentence in sentences)
    with pytest.raises(ValueError, match="statements of type 'lft or right' asked for; .*did you mean 'left or right'"):
        module(types=["lft or right"])


def test_settings_are_checked():
    with pytest.raises(ValueError, match="val_pairs is 0; set it to 1 or more"):
        module(val_pairs=0)
    assert not module().swap
    with pytest.raises(ValueError, match="ask for fewer pairs or give more scenes"):
        module(val_scenes=2, val_pairs=4000).check()
