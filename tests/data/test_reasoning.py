"""Both images of a pair are augmented alike, and what changes sides says so."""

import pytest
import torch

from tests.data.loading import epoch, same
from tests.data.pictures import processor
from tests.data.statement_pictures import nlvr2
from upop.data import Nlvr2
from upop.data.reasoning import mirrored
from upop.data.texts import clean_caption


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return nlvr2(tmp_path_factory.mktemp("nlvr2"))


def module(files, **settings):
    data = Nlvr2(**{**files, "batch_size": 4, "eval_batch_size": 3, "num_workers": 0, **settings})
    data.set_processor(processor())
    return data


def sentences(batch):
    return [
        tuple(row[mask.bool()].tolist()) for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def tokens(text):
    return tuple(processor().tokenizer(text)["input_ids"])


def samples(data, epochs=1):
    """Pixels, sentence and label of each training pair, by its number, of each epoch."""
    found = []
    for number in range(epochs):
        for batch in epoch(data.train_dataloader(), number):
            rows = zip(batch["index"].tolist(), batch["pixel_values"], sentences(batch), batch["labels"], strict=True)
            found += list(rows)
    return found


def test_mirroring_twice_is_like_never():
    text = "Left of the left image, rightly; RIGHT and leftover, right."
    assert mirrored(text) == "Right of the right image, rightly; RIGHT and leftover, left."
    assert mirrored(mirrored(text)) == text


def test_batches_hold_sentences_and_labels_of_their_pairs(files):
    data = module(files, augment="none", swap=False)
    pairs = data.pairs("train")
    found = samples(data)
    assert sorted(number for number, *_ in found) == list(range(12))
    for number, pixels, sentence, label in found:
        assert sentence == tokens(clean_caption(pairs[number].sentence, 40))
        assert label == int(pairs[number].label)
        assert pixels.shape == (2, 3, 64, 64)


def test_every_second_pair_changes_sides_and_its_sentence_with_it(files):
    straight = {number: pixels for number, pixels, _, _ in samples(module(files, augment="none", swap=False))}
    data = module(files, augment="none")
    changed = []
    for number, pixels, sentence, label in samples(data, epochs=4):
        pair = data.pairs("train")[number]
        swapped = not torch.equal(pixels, straight[number])
        text = clean_caption(pair.sentence, 40)
        assert torch.equal(pixels.flip(0) if swapped else pixels, straight[number])
        assert sentence == tokens(mirrored(text) if swapped else text)
        assert label == int(pair.label)
        changed.append(swapped)
    assert 12 < sum(changed) < 36  # of 48


@pytest.mark.parametrize("augment", ["paper", "light"])
def test_equal_images_stay_equal(files, augment, monkeypatch):
    data = module(files, augment=augment)
    content = data._content("train")
    monkeypatch.setattr(content, "load", lambda number: (type(content).load(content, 0)[0],) * 2)
    found = [pixels for _, pixels, _, _ in samples(data)]
    assert all(torch.equal(*pixels) for pixels in found)
    assert len({float(pixels.sum()) for pixels in found}) > 6


def test_batches_follow_from_seed_and_epoch_alone(files):
    one, two = (module(files, num_workers=workers, seed=5).train_dataloader() for workers in (0, 2))
    assert same(epoch(one, 1), epoch(two, 1))
    assert not same(epoch(one, 1), epoch(one, 2))


def test_settings_are_checked(files):
    with pytest.raises(ValueError, match="max_words is 0; set it to 1 or more"):
        module(files, max_words=0)
    with pytest.raises(ValueError, match="split 'dev' is none of"):
        module(files).pairs("dev")
    raw = module(files, clean_sentences=False)
    assert sentences(next(iter(raw.val_dataloader())))[0] == tokens(raw.pairs("val")[0].sentence)
    few = module(files, max_words=2)
    assert sentences(next(iter(few.val_dataloader())))[0] == tokens("the left")
