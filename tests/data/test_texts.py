"""Texts are what the tokenizer itself would give, only sooner and smaller."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.data.pictures import WORDS, processor
from upop.data.texts import Texts, clean_caption, clean_question, full_length, text_limit

PROCESSOR = processor()
captions = st.lists(st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join), min_size=1, max_size=6)


def siglip(tokenizer):
    return type("SiglipProcessor", (), {"tokenizer": tokenizer})()


@given(captions, st.sampled_from([8, 20, 32]))
def test_full_batches_are_the_tokenizers_own(texts, length):
    held = Texts(texts, PROCESSOR, length)
    found = held.batch([held[number] for number in range(len(held))], full=True)
    own = PROCESSOR.tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    assert torch.equal(found["input_ids"], own["input_ids"])
    assert torch.equal(found["attention_mask"], own["attention_mask"])


@given(captions)
def test_training_batches_are_the_same_texts_with_less_padding(texts):
    held = Texts(texts, PROCESSOR, 30)
    rows = [held[number] for number in range(len(held))]
    short, full = held.batch(rows, full=False), held.batch(rows, full=True)
    width = short["input_ids"].shape[1]
    assert width == min(30, -(-max(map(len, rows)) // 8) * 8)
    assert torch.equal(short["input_ids"], full["input_ids"][:, :width])
    assert not full["attention_mask"][:, width:].any()


def test_siglip_always_has_full_length_and_sees_its_padding():
    held = Texts(["red star"], siglip(PROCESSOR.tokenizer), 32)
    found = held.batch([held[0]], full=False)
    assert found["input_ids"].shape == (1, 32)
    assert found["attention_mask"].all()
    assert full_length(SimpleNamespace(tokenizer=SimpleNamespace(model_input_names=["input_ids"])))
    assert not full_length(PROCESSOR)


def test_left_padding_and_its_mask():
    tokenizer = processor().tokenizer
    tokenizer.padding_side = "left"
    held = Texts(["red star", "star"], SimpleNamespace(tokenizer=tokenizer), 12)
    found = held.batch([held[1], held[0]], full=True)
    own = tokenizer(["star", "red star"], padding="max_length", max_length=12, return_tensors="pt")
    assert torch.equal(found["input_ids"], own["input_ids"])
    assert torch.equal(found["attention_mask"], own["attention_mask"])


def test_limits_are_the_tokenizers_unless_set():
    assert text_limit(PROCESSOR, None) == 32
    assert text_limit(PROCESSOR, 12) == 12
    with pytest.raises(ValueError, match="text_length is 99 tokens; the tokenizer allows 3 to 32"):
        text_limit(PROCESSOR, 99)
    with pytest.raises(ValueError, match="the tokenizer states no longest text; set text_length"):
        text_limit(SimpleNamespace(tokenizer=SimpleNamespace(model_max_length=10**30)), None)


def test_a_tokenizer_without_padding_is_refused():
    tokenizer = SimpleNamespace(pad_token_id=None, model_input_names=[], padding_side="right")
    with pytest.raises(ValueError, match="the tokenizer has no pad token"):
        Texts(["a"], SimpleNamespace(tokenizer=tokenizer), 8)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("A dog , running .", "a dog , running"),
        ('"Stop!" (he said): #1 ~ *', "stop he said 1"),
        ("  a\tb\nc ", "a b c"),
        ("it's", "it's"),
    ],
)
def test_cleaning_is_blips(raw, clean):
    assert clean_caption(raw) == clean
    assert clean_caption("w " * 60) == ("w " * 50).strip()


@given(st.text(alphabet="aB .!\"()*#:;~?,'", max_size=30), st.integers(1, 4))
def test_questions_lose_their_marks_without_a_gap(question, most):
    found = clean_question(question, most)
    kept = "".join(letter for letter in question.lower() if letter not in '.!"()*#:;~')
    assert found.split() == kept.split()[:most]
    assert clean_question(found, most) == found
