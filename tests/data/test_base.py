"""What every data module does: resume exactly, refuse what does not fit, show its settings."""

import gc
import inspect
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

import upop.data
from tests.data.loading import epoch, module
from tests.data.pictures import flickr8k, processor
from upop.data import Flickr8kRetrieval, RetrievalData
from upop.data.base import TaskDataModule
from upop.data.retrieval import RetrievalDataModule


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


@pytest.mark.parametrize("kind", [TaskDataModule, RetrievalDataModule])
def test_what_opens_nothing_cannot_be_made(kind):
    with pytest.raises(TypeError, match=f"Can't instantiate abstract class {kind.__name__} with abstract method"):
        kind()


KINDS = [getattr(upop.data, name) for name in upop.data.__all__ if name not in ("CaptionData", "RetrievalData")]


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_line_shows_every_setting_with_its_help(kind):
    parser = ArgumentParser()
    parser.add_class_arguments(kind, "data")
    text = parser.format_help()
    for name in ("batch_size", "eval_batch_size", "num_workers", "augment", "flip", "text_length", "seed"):
        assert f"--data.{name}" in text
    built_in = kind.__name__.startswith("Shapes")
    assert "training pictures" in text if built_in else "required" in text
    assert ("--data.folds" in text) == issubclass(kind, RetrievalDataModule)
    built = parser.instantiate(parser.parse_args([] if built_in else ["--data.images=a", "--data.annotations=b"])).data
    assert isinstance(built, kind)
    assert built.batch_size == (64 if built_in else 32)


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_is_documented(kind):
    """In the docstring of the class, or of one that it inherits from."""
    parser = ArgumentParser()
    parser.add_class_arguments(kind, "data")
    text = "".join(inspect.getdoc(part) or "" for part in kind.__mro__ if part.__module__.startswith("upop"))
    names = [action.dest.removeprefix("data.") for action in parser._actions if action.dest.startswith("data.")]
    assert [name for name in names if f"\n    {name}: " not in text] == []


@pytest.mark.parametrize("enabled", [True, False])
def test_opening_looks_for_no_garbage_and_leaves_the_collector_as_it_was(monkeypatch, enabled):
    data = upop.data.ShapesRetrieval(train_scenes=2, val_scenes=1, test_scenes=1)
    states = []

    def opened():
        states.append(gc.isenabled())
        raise ValueError("broken file")

    monkeypatch.setattr(data, "_open", opened)
    was = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(ValueError, match="broken file"):
            data.check()
        assert states == [False]
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was else gc.disable)()
