"""The built-in questions as a data set: right answers, held-out pictures, candidates for all."""

import pytest
import torch

from tests.data.loading import epoch, same
from tests.data.pictures import processor
from upop.data import ShapesVqa
from upop.data.drawing import draw
from upop.data.questions import ANSWERS, questions
from upop.data.scenes import scenes
from upop.data.transforms import evaluation_pixels


def module(**settings):
    data = ShapesVqa(**{"train_scenes": 12, "val_scenes": 5, "test_scenes": 5, "batch_size": 8, **settings})
    data.set_processor(processor())
    return data


def test_every_scene_is_asked_about_with_its_own_picture():
    data = module(questions_per_scene=3, seed=2)
    of = scenes("val", 5, 2)
    expected = [(n, one) for n, scene in enumerate(of) for one in questions(scene, 2)[:3]]
    found = data.questions("val")
    assert [(q.question, q.answers, q.question_type, q.answer_type) for q in found] == [
        (one.text, (one.answer,) * 10, one.type, one.kind) for _, one in expected
    ]
    assert [q.question_id for q in found] == list(range(len(expected)))
    pictures = evaluation_pixels(processor(), [draw(of[n], 64, 2) for n, _ in expected])
    assert torch.equal(torch.cat([batch["pixel_values"] for batch in data.val_dataloader()]), pictures)


def test_candidates_are_all_answers_of_the_world():
    data = module()
    assert data.answers == list(ANSWERS)
    assert {answer for question in data.questions("train") for answer in question.answers} <= set(data.answers)


def test_a_training_batch_has_one_answer_a_question():
    data = module()
    batch = next(iter(data.train_dataloader()))
    assert batch["answer_weights"].tolist() == pytest.approx([1.0] * 8)
    assert batch["answer_question"].tolist() == list(range(8))


def test_everything_follows_from_the_seed():
    one, two, other = (epoch(module(seed=seed).train_dataloader(), 0) for seed in (1, 1, 2))
    assert same(one, two)
    assert not same(one, other)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="questions_per_scene is 0; set it to 1 or more"):
        module(questions_per_scene=0)
    with pytest.raises(ValueError, match="val_scenes is 0; set it to 1 to 100000"):
        module(val_scenes=0)
