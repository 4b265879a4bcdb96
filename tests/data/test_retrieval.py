"""Loaders give what they promise: batches that follow from the seed, whole galleries, runs that resume exactly."""

from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from transformers import AutoProcessor

from tests.data.pictures import flickr8k, processor
from upop.data import Flickr8kRetrieval, RetrievalData, ShapesRetrieval

FLICKR8K = Path("../shared/data/flickr8k")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return flickr8k(tmp_path_factory.mktemp("data") / "flickr8k")


def module(files, **settings):
    settings = {"batch_size": 4, "eval_batch_size": 4, "num_workers": 0, **settings}
    data = Flickr8kRetrieval(**{**files, **settings})
    data.set_processor(processor())
    return data


def epoch(loader, number, most=99):
    loader.sampler.set_epoch(number)
    return list(islice(iter(loader), most))


def same(left, right):
    return len(left) == len(right) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in zip(left, right, strict=True)
    )


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


class Recorder(LightningModule):
    """Writes down what it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch):
        pixels = float(batch["pixel_values"].double().sum())
        self.seen.append((self.current_epoch, batch["image_index"].tolist(), batch["input_ids"].tolist(), pixels))
        return self.weight * 1.0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Killed(Exception):  # noqa: N818
    pass


class Kill(Callback):
    """Stops the run before a step, as a crash would: nothing of the epoch is tidied up."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise Killed


def fit(files, workers, folder=None, kill=-1, steps=12, **more):
    """Run to ``steps``, saving after each; killed before step ``kill``, or resumed from what the killed run saved."""
    model, saved = Recorder(), folder and folder / "last.ckpt"
    keep = [ModelCheckpoint(folder, "last", every_n_train_steps=1, enable_version_counter=False)] if folder else []
    trainer = Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=bool(folder), enable_progress_bar=False,
        enable_model_summary=False, callbacks=[*keep, Kill(kill)], **more,
    )  # fmt: skip
    data = module(files, num_workers=workers, augment="light")
    with pytest.raises(Killed) if kill >= 0 else nullcontext():
        trainer.fit(model, datamodule=data, ckpt_path=saved if saved and saved.exists() else None, weights_only=True)
    return model.seen


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [3, 5, 7])
def test_a_run_that_was_stopped_sees_what_an_unbroken_run_sees(files, tmp_path, workers, stop):
    """An epoch has five batches: the stops are inside the first epoch, at its end, and inside the second."""
    whole = fit(files, 0)
    before = fit(files, workers, tmp_path, kill=stop)
    assert len(before) == stop
    assert before + fit(files, workers, tmp_path) == whole
    assert [number for number, *_ in whole] == [0] * 5 + [1] * 5 + [2] * 2


def test_short_epochs_resume_too(files, tmp_path):
    before = fit(files, 0, tmp_path, kill=4, limit_train_batches=3)
    assert before + fit(files, 0, tmp_path, limit_train_batches=3) == fit(files, 0, limit_train_batches=3)


def test_overfitting_on_a_few_batches_works(files):
    seen = fit(files, 0, steps=4, overfit_batches=2)
    assert seen[0][1:3] == seen[2][1:3]


def test_a_limit_takes_the_first_images_and_reads_no_others(files):
    data = module(files, train_limit=3, batch_size=2)
    assert [record.image for record in data.gallery("train").records] == [f"images/{n}.png" for n in range(3)]
    assert len(data.train_dataloader()) == 3


def test_captions_are_cleaned_on_request(tmp_path):
    files = flickr8k(tmp_path / "data")
    path = tmp_path / "data/dataset_flickr8k.json"
    path.write_text(path.read_text().replace('"red', '"RED . (').replace('"green', '"Green ! '))
    raw, clean = (list(module(files, clean_captions=value).test_dataloader()[1]) for value in (False, True))
    unknown = processor().tokenizer.unk_token_id
    assert any((batch["input_ids"] == unknown).any() for batch in raw)
    assert not any((batch["input_ids"] == unknown).any() for batch in clean)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; set it to 1 or more"),
        ({"num_workers": -1}, "num_workers is -1; set it to 0 or more"),
        ({"folds": 0}, "folds is 0; set it to 1 or more"),
        ({"augment": "heavy"}, r"augment is 'heavy'; expected one of \['light', 'none', 'paper'\]"),
        ({"train_captions": "two"}, r"train_captions is 'two'; expected one of \['all', 'one'\]"),
        ({"train_limit": 0}, "train_limit is 0 images; set it to 1 or more"),
    ],
)
def test_settings_out_of_range_are_refused_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        Flickr8kRetrieval("nowhere", "nowhere", **settings)


def test_what_does_not_fit_the_data_is_refused_before_a_model_is_built(files, tmp_path):
    with pytest.raises(ValueError, match=r"folds is 4, but split 'val' has 6 images, .* choose one of \[1, 2, 3, 6\]"):
        Flickr8kRetrieval(**files, folds=4).check()
    with pytest.raises(FileNotFoundError, match="no annotations at 'nowhere'"):
        Flickr8kRetrieval(files["images"], "nowhere").check()
    with pytest.raises(FileNotFoundError, match="22 of 22 images are missing under"):
        Flickr8kRetrieval(str(tmp_path), files["annotations"]).check()
    with pytest.raises(ValueError, match="batch_size 99 on 1 process"):
        module(files, batch_size=99).train_dataloader()
    with pytest.raises(TypeError, match="RetrievalData names no files of its own"):
        RetrievalData(**files)


def test_a_broken_image_stops_the_run_with_its_name_and_verify_finds_it_first(tmp_path):
    files = flickr8k(tmp_path / "data")
    (tmp_path / "data/images/3.png").write_bytes(b"oops")
    with pytest.raises(ValueError, match=r"1 of 22 images are broken: image '.*images/3\.png' cannot be decoded"):
        Flickr8kRetrieval(**files, verify=True).check()
    with pytest.raises(ValueError, match=r"image '.*images/3\.png' cannot be decoded"):
        epoch(module(files).train_dataloader(), 0)


def test_checking_twice_reads_once(files, monkeypatch):
    data = Flickr8kRetrieval(**files)
    data.check()
    monkeypatch.setattr(Path, "read_bytes", None)
    data.check()
    data.setup("fit")
    with pytest.raises(ValueError, match=r"split 'dev' is none of \['test', 'train', 'val'\]"):
        data.gallery("dev")


def test_loaders_need_a_processor_that_can_do_both(files):
    data = Flickr8kRetrieval(**files)
    with pytest.raises(RuntimeError, match="Flickr8kRetrieval has no processor; call set_processor before"):
        data.train_dataloader()
    with pytest.raises(TypeError, match=r"without \['image_processor', 'tokenizer'\]; .*AutoProcessor"):
        data.set_processor(object())
    with pytest.raises(ValueError, match="text_length is 400 tokens; the tokenizer allows 3 to 32"):
        Flickr8kRetrieval(**files, text_length=400).set_processor(processor())


@pytest.mark.parametrize("kind", [Flickr8kRetrieval, ShapesRetrieval])
def test_the_command_line_shows_every_setting_with_its_help(kind):
    parser = ArgumentParser()
    parser.add_class_arguments(kind, "data")
    text = parser.format_help()
    for name in ("batch_size", "eval_batch_size", "num_workers", "augment", "flip", "text_length", "folds", "seed"):
        assert f"--data.{name}" in text
    assert "required" in text if kind is Flickr8kRetrieval else "training pictures" in text
    built = parser.parse_args(["--data.images=a", "--data.annotations=b"] if kind is Flickr8kRetrieval else [])
    assert isinstance(parser.instantiate_classes(built).data, kind)


@pytest.mark.skipif(not FLICKR8K.is_dir(), reason=f"needs {FLICKR8K}")
@pytest.mark.parametrize("annotations", [FLICKR8K, FLICKR8K / "dataset_flickr8k.json.gz"])
@pytest.mark.parametrize("images", [FLICKR8K, FLICKR8K / "images"])
def test_the_real_flickr8k_is_found_however_it_is_named(images, annotations):
    data = Flickr8kRetrieval(str(images), str(annotations), folds=5)
    data.check()
    assert data.gallery("test").load(0).size == (128, 128)
    assert len(data.eval_pairs("test")) == 5000


@pytest.mark.skipif(not FLICKR8K.is_dir(), reason=f"needs {FLICKR8K}")
def test_a_batch_of_the_real_flickr8k():
    data = Flickr8kRetrieval(str(FLICKR8K), str(FLICKR8K), batch_size=8, num_workers=0)
    checkpoint = Path("../shared/checkpoints/clip-mini-flickr8k")
    if not checkpoint.is_dir():
        pytest.skip(f"needs {checkpoint}")
    data.set_processor(AutoProcessor.from_pretrained(checkpoint))
    batch = next(iter(data.train_dataloader()))
    assert batch["pixel_values"].shape == (8, 3, 96, 96)
    assert len(data.train_dataloader()) == 30_000 // 8
    image = data.gallery("val").load(0)
    assert isinstance(image, Image.Image)
    assert image.mode == "RGB"
