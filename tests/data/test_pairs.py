"""Loaders give what they promise: true pairs that follow from the seed, and whole galleries."""

import pytest
import torch

from tests.data.loading import epoch, module, same


def test_training_batches_have_the_promised_fields(files):
    batch = epoch(module(files).train_dataloader(), 0)[0]
    assert {key: (tuple(value.shape), value.dtype) for key, value in batch.items()} == {
        "pixel_values": ((4, 3, 64, 64), torch.float32),
        "input_ids": ((4, 8), torch.int64),
        "attention_mask": ((4, 8), torch.int64),
        "image_index": ((4,), torch.int64),
    }


@pytest.mark.parametrize("captions", ["all", "one"])
@pytest.mark.parametrize("augment", ["paper", "light"])
def test_batches_do_not_depend_on_workers_or_on_what_was_drawn_before(files, captions, augment):
    settings = {"train_captions": captions, "augment": augment}
    alone = epoch(module(files, **settings).train_dataloader(), 1)
    torch.rand(7)
    before = torch.get_rng_state()
    again = module(files, **settings, cache_images=True).train_dataloader()
    assert same(alone, epoch(again, 1))
    assert torch.equal(before, torch.get_rng_state()), "loading draws from the generator of the training"
    if captions == "one":
        workers = module(files, **settings, num_workers=2).train_dataloader()
        assert same(alone, epoch(workers, 1))
    assert not same(alone, epoch(again, 2))
    assert not same(alone, epoch(module(files, **settings, seed=1).train_dataloader(), 1))


def test_samples_are_true_pairs_and_an_epoch_has_each_once(files):
    data = module(files, augment="none", batch_size=1)
    owned = {}
    for image, captions in enumerate(data.gallery("train").captions):
        for caption in captions:
            owned.setdefault(caption, set()).add(image)
    decode = data.processor.tokenizer.batch_decode
    for captions, expected in (("all", 20), ("one", 10)):
        loader = module(files, augment="none", batch_size=1, train_captions=captions).train_dataloader()
        seen = []
        for batch in epoch(loader, 0):
            image = int(batch["image_index"])
            assert image in owned[decode(batch["input_ids"], skip_special_tokens=True)[0]]
            picture = data.gallery("train").load(image)
            own = data.processor.image_processor([picture], return_tensors="pt")["pixel_values"]
            assert torch.equal(batch["pixel_values"], own)
            seen.append(image)
        assert sorted(seen) == sorted(list(range(10)) * (expected // 10))


def test_one_caption_per_image_varies_with_the_epoch(files):
    loader = module(files, train_captions="one", augment="none", batch_size=10).train_dataloader()

    def chosen(number):
        (batch,) = epoch(loader, number)
        return dict(zip(batch["image_index"].tolist(), batch["attention_mask"].sum(1).tolist(), strict=True))

    drawn = [chosen(number) for number in range(4)]
    assert all(len({of_epoch[image] for of_epoch in drawn}) <= 2 for image in range(10))
    assert any(len({of_epoch[image] for of_epoch in drawn}) == 2 for image in range(10))


def test_evaluation_has_each_image_and_caption_once(files):
    data = module(files)
    images, texts = data.test_dataloader()
    rows = list(images)
    assert torch.cat([batch["index"] for batch in rows]).tolist() == list(range(6))
    own = data.processor.image_processor([data.gallery("test").load(n) for n in range(4)], return_tensors="pt")
    assert torch.equal(rows[0]["pixel_values"], own["pixel_values"])
    rows = list(texts)
    assert torch.cat([batch["index"] for batch in rows]).tolist() == list(range(12))
    assert torch.equal(torch.cat([batch["image_index"] for batch in rows]), data.eval_pairs("test"))
    assert data.eval_pairs("test").tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    captions = [caption for of_image in data.gallery("test").captions for caption in of_image]
    own = data.processor.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    assert torch.equal(torch.cat([batch["input_ids"] for batch in rows]), own["input_ids"])
    assert torch.equal(torch.cat([batch["attention_mask"] for batch in rows]), own["attention_mask"])
