"""Files with something wrong in them: each works, or ends with a line that says which file it is about.

Some 700 corruptions of annotations, images, plans, checkpoints, recipes and run directories, the same in every run.
What cannot be seen without a checksum, such as another value of a weight, is allowed to pass; names and sizes are not.

``UPOP_FUZZ=20 pytest tests/test_fuzz.py`` tries twenty times as many.
"""

import io
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests import tiny
from tests.corpora import CORPORA, LINES, copied
from tests.corruption import edited, spoilt, survived
from tests.data.pictures import processor
from tests.export import samples
from tests.plans import random_plan
from tests.recipes import recipe, tiny_checkpoint, tiny_config, write
from tests.runs.breaking import stopped_in_the_second_epoch
from tests.runs.timers import Abacus
from upop.cli import build_parser, parse, recipe_of
from upop.data.annotations import SPLITS
from upop.data.decoding import load_image
from upop.export import load, save
from upop.families import find_sites
from upop.runs import RunDirectory, fit, measuring
from upop.structure import KINDS, Plan
from upop.surgery import shrink_

pytestmark = pytest.mark.filterwarnings("ignore")
TIMES = int(os.environ.get("UPOP_FUZZ", "1"))
SECONDS = 30
"""After which something is said to hang."""


def examples(number):
    """The same corruptions in every run, none of them kept."""
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(
        max_examples=number * TIMES, derandomize=True, database=None, deadline=None, suppress_health_check=checks,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _alarm():
    """Ends what hangs."""

    def stop(*_):
        raise AssertionError(f"still busy after {SECONDS} s without a corruption")

    before = signal.signal(signal.SIGALRM, stop)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def in_time(action):
    """Run something, but not for long."""
    signal.alarm(SECONDS)
    try:
        return action()
    finally:
        signal.alarm(0)


@pytest.fixture(scope="module", params=CORPORA, ids=lambda make: make.__name__)
def corpus(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp("data") / "made")


@pytest.fixture(scope="module")
def reading():
    return processor()


def used(data, reading):
    """What was read is whole: images are there, texts are texts, batches can be made."""
    for split in SPLITS:
        content = data._content(split)
        for text in getattr(content, "captions", ()):
            assert text
            assert all(isinstance(one, str) and one.strip() for one in text)
        for pair in getattr(content, "pairs", ()):
            assert isinstance(pair.label, bool)
    data.set_processor(reading)
    loaders = data.test_dataloader()
    for loader in (data.train_dataloader(), *(loaders if isinstance(loaders, list) else [loaders])):
        for batch in loader:
            assert all(value.isfinite().all() for value in batch.values() if isinstance(value, torch.Tensor))
    return True


UNFIT = ("train takes", "test takes", "batch_size", "candidate answers", "answers occur")
"""What errors name that are about settings that no longer fit to the files."""


@examples(24)
@given(draw=st.data())
def test_annotations(corpus, reading, tmp_path_factory, draw):
    file = draw.draw(st.sampled_from(corpus.files))
    original = (corpus.folder / file).read_bytes()
    if draw.draw(st.integers(0, 3)):
        lines = file.rpartition("/")[2] in LINES
        content = [json.loads(row) for row in original.splitlines()] if lines else json.loads(original)
        content = draw.draw(edited(content))
        rows = content if lines and isinstance(content, list) else [content]
        changed = "\n".join(json.dumps(row) for row in rows).encode()
    else:
        changed = draw.draw(spoilt(original))
    broken = copied(corpus, tmp_path_factory.mktemp("broken") / "data")
    (broken.folder / file).write_bytes(changed)
    try:
        # Settings that no longer fit are said by their names, files by theirs.
        names = (
            str(broken.folder),
            file,
            "train takes",
            "test takes",
            "batch_size",
            "candidate answers",
            "answers occur",
        )
        in_time(lambda: survived(lambda: used(broken.open(), reading), *names))
    finally:
        shutil.rmtree(broken.folder)


@pytest.fixture(scope="module")
def photographs():
    """Small images in every format that is decoded."""
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    found = {}
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        memory = io.BytesIO()
        Image.fromarray(pixels).save(memory, kind)
        found[kind] = memory.getvalue()
    return found


@examples(150)
@given(draw=st.data())
def test_images(photographs, tmp_path_factory, draw):
    content = photographs[draw.draw(st.sampled_from(sorted(photographs)))]
    path = tmp_path_factory.mktemp("image") / "a.jpg"
    path.write_bytes(draw.draw(spoilt(content, draw.draw(st.sampled_from((64, None))))))
    found = in_time(lambda: survived(lambda: load_image(path), str(path)))
    assert found is None or (found.mode == "RGB" and np.asarray(found).shape[-1] == 3)


@pytest.fixture(scope="module")
def sites():
    return find_sites(tiny.build("clip"), KINDS)


@examples(120)
@given(draw=st.data())
def test_plans(sites, tmp_path_factory, draw):
    plan = random_plan(sites, 1)
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    plan.save(path)
    if draw.draw(st.booleans()):
        path.write_text(json.dumps(draw.draw(edited(json.loads(path.read_text())))))
    else:
        path.write_bytes(draw.draw(spoilt(path.read_bytes())))
    found = in_time(lambda: survived(lambda: Plan.load(path), str(path)))
    if found is not None and in_time(lambda: survived(lambda: found.check(sites) or True, "plan")):
        units = {site.name: site.units for site in sites}
        assert all(set(kept) <= set(range(units[name])) and kept for name, kept in found.keep.items())
        assert found.model == plan.model
        found.kinds()


@pytest.fixture(scope="module", params=["dense", "compressed", "timm"])
def directory(request, tmp_path_factory):
    """A model directory, and what belongs into it."""
    name = "timm_vit" if request.param == "timm" else "clip"
    model, plan, kinds = samples.model(name), None, ()
    if request.param != "dense":
        sites, kinds = find_sites(model, KINDS), KINDS
        plan = random_plan(sites, 1)
        shrink_(model, sites, plan)
    return save(model, samples.processor(name), tmp_path_factory.mktemp("model") / "made", plan, kinds)


def shapes(model):
    return {name: (value.shape, value.is_floating_point()) for name, value in model.state_dict().items()}


def checked(directory, tmp_path_factory, file, content):
    """Load a copy of a directory of which one file is another; what loads has the names and sizes of the original."""
    broken = tmp_path_factory.mktemp("model") / "broken"
    shutil.copytree(directory, broken)
    (broken / file).write_bytes(content)
    found = in_time(lambda: survived(lambda: load(broken), str(broken)))
    assert found is None or not file.endswith(".safetensors") or shapes(found[0]) == shapes(load(directory)[0])
    shutil.rmtree(broken)


ENTRIES = ({"dtype": "I32"}, {"dtype": "F64"}, {"shape": [1]}, {"shape": [2**62, 4]}, {"shape": []})
"""What a header may say of a tensor that it does not hold."""


@examples(25)
@given(draw=st.data())
def test_headers_of_weights(directory, tmp_path_factory, draw):
    whole = (directory / "model.safetensors").read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    edit = draw.draw(st.sampled_from(("bytes", "header", "entry")))
    if edit == "bytes":
        content = draw.draw(spoilt(whole, 8 + size))
    else:
        if edit == "entry":
            entry = header[draw.draw(st.sampled_from(sorted(set(header) - {"__metadata__"})))]
            entry |= draw.draw(st.sampled_from(ENTRIES))
        else:
            header = draw.draw(edited(header))
        text = json.dumps(header).encode()
        content = len(text).to_bytes(8, "little") + text + whole[8 + size :]
    checked(directory, tmp_path_factory, "model.safetensors", content)


@examples(25)
@given(draw=st.data())
def test_configs_of_models(directory, tmp_path_factory, draw):
    file = draw.draw(st.sampled_from([path.name for path in sorted(directory.glob("*.json"))] + ["config.json"] * 3))
    original = (directory / file).read_bytes()
    content = json.loads(original)
    if draw.draw(st.integers(0, 3)):
        changed = json.dumps(draw.draw(edited(content))).encode()
    else:
        changed = draw.draw(spoilt(original))
    checked(directory, tmp_path_factory, file, changed)


@pytest.fixture(scope="module")
def parser():
    return build_parser()


@examples(40)
@given(draw=st.data())
def test_recipes(parser, tmp_path_factory, draw):
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    config = tiny_config(Path("checkpoints/none"), Path("runs/none"))
    if draw.draw(st.integers(0, 3)):
        content = draw.draw(edited(config))
        path.write_text(yaml.safe_dump(content))
    else:
        path.write_bytes(draw.draw(spoilt(write(config, path).read_bytes())))
    in_time(lambda: survived(lambda: recipe_of(parser, parse(parser, ["--config", str(path)])), ""))


RESULT = ("plan.json", "search/compressed/model.safetensors", "search/carried.safetensors")
DIRECTORY = ("state.json", "config.yaml", "search/latency.json", "finetune/carried.safetensors")
LAST = "search/checkpoints/last.ckpt"


class Stopped:
    """A run by latency, stopped in the second epoch of its search, and what it comes to.

    Args:
        folder: Where to work.
    """

    def __init__(self, folder):
        self.path, self.kept = folder / "run", folder / "kept"
        self.config = tiny_config(tiny_checkpoint(folder / "model"), self.path)
        self.config["finetune"] = {"epochs": 1, "lr": 1e-3}
        self.config["model"]["init_args"] |= {"contrast": "queue", "queue_size": 12}
        self.config["data"]["init_args"] |= {"train_scenes": 12, "test_scenes": 4}
        self.config["search"] |= {"removed": 0.4, "of": "latency", "latency": {"batch_size": 2, "seconds": 0.0}}
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(measuring, "fastest", Abacus())
            patched.setenv("UPOP_CACHE", str(folder / "cache"))
            self.go_on("finetune")
            with stopped_in_the_second_epoch():
                self.go_on()
        shutil.copytree(self.path, self.kept)
        assert self.go_on()
        self.expected = self.result()

    def go_on(self, phase="search"):
        made = recipe(self.config, self.path.parent / "recipe.yaml")
        fit(made, RunDirectory(self.path, made.config), phase)
        return True

    def result(self):
        return [(self.path / file).read_bytes() for file in RESULT]

    def damaged(self, file, content):
        """Whether the run goes on where a file is another one."""
        shutil.rmtree(self.path)
        shutil.copytree(self.kept, self.path)
        (self.path / file).write_bytes(content)
        return in_time(
            lambda: survived(self.go_on, str(self.path / file), f"run directory {str(self.path)!r}", "latency")
        )


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    return Stopped(tmp_path_factory.mktemp("stopped"))


def plain(value):
    """A value with the dtypes and shapes of its tensors in their place."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape)
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, list | tuple) else repr(value)


@examples(30)
@given(draw=st.data())
def test_checkpoints_to_go_on_from(stopped, draw):
    original = (stopped.kept / LAST).read_bytes()
    if not draw.draw(st.integers(0, 3)):
        if stopped.damaged(LAST, draw.draw(spoilt(original))):
            assert stopped.result() == stopped.expected
        return
    content = torch.load(io.BytesIO(original), weights_only=True)
    part = draw.draw(st.sampled_from(sorted(content)))
    edit = draw.draw(edited({part: content[part]}))
    changed = edit if not isinstance(edit, dict) else {key: content[key] for key in content if key != part} | edit
    memory = io.BytesIO()
    torch.save(changed, memory)
    if stopped.damaged(LAST, memory.getvalue()):
        assert {key: plain(changed.get(key)) for key in content} == plain(content), "another run, without a word"


@examples(30)
@given(draw=st.data())
def test_files_of_run_directories(stopped, draw):
    file = draw.draw(st.sampled_from(DIRECTORY))
    original = (stopped.kept / file).read_bytes()
    if file.endswith(".safetensors") or not draw.draw(st.integers(0, 2)):
        changed = draw.draw(spoilt(original, draw.draw(st.sampled_from((64, None)))))
    elif file.endswith(".json"):
        changed = json.dumps(draw.draw(edited(json.loads(original)))).encode()
    else:
        changed = yaml.safe_dump(draw.draw(edited(yaml.safe_load(original)))).encode()
    if stopped.damaged(file, changed):
        assert stopped.result() == stopped.expected, "another run, without a word"


@pytest.mark.parametrize("file", [file for file in DIRECTORY if "/" in file])
def test_a_file_that_a_search_needs_is_missing(stopped, file, monkeypatch, tmp_path):
    shutil.rmtree(stopped.path)
    shutil.copytree(stopped.kept, stopped.path)
    (stopped.path / file).unlink()
    monkeypatch.setenv("UPOP_CACHE", str(tmp_path))
    with pytest.raises((ValueError, FileNotFoundError), match=Path(file).name):
        stopped.go_on()
