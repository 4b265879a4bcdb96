"""Batches of questions: every different answer with its weight, every question once in evaluation."""

from collections import Counter

import pytest
import torch

from tests.data.loading import epoch, same
from tests.data.pictures import processor
from tests.data.question_files import vqa_v2
from upop.data import VqaV2
from upop.data.decoding import load_image
from upop.data.texts import clean_question
from upop.data.transforms import evaluation_pixels

TAKES = {"train": ["train2014"], "val": ["val2014"], "test": ["test2015"]}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return vqa_v2(tmp_path_factory.mktemp("vqa"))


def module(files, **settings):
    settings = {"batch_size": 4, "eval_batch_size": 4, "num_workers": 0, "answers_min_count": 1, **TAKES, **settings}
    data = VqaV2(**files, **settings)
    data.set_processor(processor())
    return data


def tokens(texts):
    return processor().tokenizer(texts)["input_ids"]


def unpadded(batch, prefix="input_ids", mask="attention_mask"):
    return [row[kept.bool()].tolist() for row, kept in zip(batch[prefix], batch[mask], strict=True)]


def test_a_training_batch_holds_each_different_answer_with_its_share(files):
    data = module(files, augment="none")
    questions = {tuple(tokens(clean_question(row.question))): row for row in data.questions("train")}
    seen = 0
    for batch in epoch(data.train_dataloader(), 0):
        assert batch["pixel_values"].shape == (4, 3, 64, 64)
        answers = unpadded(batch, "answer_ids", "answer_mask")
        assert batch["answer_weights"].dtype == torch.float32
        for row, ids in enumerate(unpadded(batch)):
            question = questions[tuple(ids)]
            expected = Counter(question.answers)
            mine = [n for n, owner in enumerate(batch["answer_question"].tolist()) if owner == row]
            assert [answers[n] for n in mine] == tokens(list(expected))
            weights = [batch["answer_weights"][n].item() for n in mine]
            assert weights == pytest.approx([count / 10 for count in expected.values()])
            pixels = evaluation_pixels(processor(), [load_image(question.image)])[0]
            assert torch.equal(batch["pixel_values"][row], pixels)
            seen += 1
    assert seen == 12


def test_evaluation_sees_every_question_once_in_order_with_its_image(files):
    data = module(files)
    batches = list(data.val_dataloader())
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(6))
    rows = [ids for batch in batches for ids in unpadded(batch)]
    assert rows == tokens([clean_question(question.question) for question in data.questions("val")])
    pixels = torch.cat([batch["pixel_values"] for batch in batches])
    images = [load_image(question.image) for question in data.questions("val")]
    assert torch.equal(pixels, evaluation_pixels(processor(), images))
    assert set(batches[0]) == {"pixel_values", "input_ids", "attention_mask", "index"}


def test_a_split_without_annotations_has_questions_without_answers(files):
    data = module(files)
    assert [question.answers for question in data.questions("test")] == [()] * 4
    assert sum(len(batch["index"]) for batch in data.test_dataloader()) == 4


def test_candidates_are_tokenised_in_order(files):
    data = module(files)
    assert sorted(data.answers) == ["a star", "red", "two", "yes"]
    batch = data.answer_tokens()
    assert unpadded(batch) == tokens(data.answers)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (4, 8)


def test_questions_are_cleaned_unless_they_are_to_stay(files):
    row = next(iter(module(files, clean_questions=False).val_dataloader()))
    assert unpadded(row)[0] == tokens("Is" + " it" * 12 + ", number 12?")
    long = module(files, text_length=4)
    assert max(len(ids) for batch in long.val_dataloader() for ids in unpadded(batch)) == 4


def test_batches_follow_from_seed_and_epoch_alone(files):
    one, two = (module(files, num_workers=workers, seed=3).train_dataloader() for workers in (0, 2))
    torch.manual_seed(1)
    first = epoch(one, 1)
    assert same(first, epoch(two, 1))
    assert not same(first, epoch(one, 2))
    assert not same(first, epoch(module(files, seed=4).train_dataloader(), 1))


def test_checking_comes_before_any_processor(files):
    data = VqaV2(**files, **TAKES, answers_min_count=1)
    assert len(data.answers) == 4
    with pytest.raises(RuntimeError, match="VqaV2 has no processor"):
        data.answer_tokens()
    with pytest.raises(ValueError, match="split 'dev' is none of"):
        data.questions("dev")
