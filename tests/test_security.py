"""Files from strangers: nothing in them is executed, nothing outside the image root is read, absurd sizes are refused.

Every entry point is given a pickle that would leave a mark if it were unpickled, and code that would leave one if it
were run. Errors are those that the command line shows in one line.
"""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests import tiny
from tests.corpora import CORPORA, copied
from tests.data.pictures import processor
from tests.data.test_decoding import claiming
from tests.export import samples
from tests.plans import random_plan
from tests.recipes import tiny_config, write
from upop.cli import build_parser, parse, recipe_of
from upop.export import import_checkpoint, load, save
from upop.families import find_sites
from upop.runs import RunDirectory, fit
from upop.runs.reporting import write_report
from upop.structure import KINDS, Plan
from upop.surgery import shrink_

SHOWN = (ValueError, TypeError, OSError)
"""What the command line shows in one line."""


class Malicious:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


@pytest.fixture
def mark(tmp_path):
    """A file that must not exist at the end."""
    path = tmp_path / "mark"
    yield path
    assert not path.exists(), "something was executed"


def poisoned(path, mark, form="pickle", content=None):
    """Write a pickle, or what torch makes of one."""
    content = content if content is not None else Malicious(mark)
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    return path


def code(mark):
    """A module that leaves a mark when it is imported."""
    return f"open({str(mark)!r}, 'w').close()\n"


def test_the_trap_works(tmp_path):
    pickle.loads(poisoned(tmp_path / "trap", tmp_path / "set").read_bytes()).close()
    assert (tmp_path / "set").exists()


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return samples.directory(tmp_path_factory.mktemp("dense") / "clip")


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    model = samples.model("clip")
    sites = find_sites(model, KINDS)
    plan = random_plan(sites, 1)
    shrink_(model, sites, plan)
    return save(model, samples.processor("clip"), tmp_path_factory.mktemp("cut") / "clip", plan, KINDS)


def other(directory, tmp_path):
    """A copy to be spoilt."""
    return Path(shutil.copytree(directory, tmp_path / "model"))


@pytest.mark.parametrize("form", ["pickle", "zip", "legacy"])
@pytest.mark.parametrize("what", ["whole", "entry"])
def test_weights_in_a_pickle(tmp_path, mark, dense, form, what):
    path = other(dense, tmp_path)
    (path / "model.safetensors").unlink()
    content = None if what == "whole" else {**samples.model("clip").state_dict(), "config": Malicious(mark)}
    poisoned(path / "pytorch_model.bin", mark, form, content)
    with pytest.raises(
        ValueError, match=r"model' cannot be loaded: its weights are no tensors alone, or broken, and noth"
    ):
        load(path)


def test_weights_in_a_pickle_that_holds_tensors_alone(tmp_path, dense):
    path = other(dense, tmp_path)
    (path / "model.safetensors").unlink()
    model = samples.model("clip")
    torch.save(model.state_dict(), path / "pytorch_model.bin")
    assert torch.equal(tiny.outputs(load(path)[0]), tiny.outputs(model))


@pytest.mark.parametrize("form", ["pickle", "zip"])
def test_a_pickle_in_the_place_of_safetensors(tmp_path, mark, dense, cut, form):
    for number, directory in enumerate((dense, cut)):
        path = other(directory, tmp_path / str(number))
        poisoned(path / "model.safetensors", mark, form)
        with pytest.raises(ValueError, match=r"model\.safetensors' cannot be read as safetensors: .*; copy it again"):
            load(path)
        (path / "model.safetensors").unlink()
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../mark"}}))
        with pytest.raises(ValueError, match=r"index\.json' names \['../../mark'\]; expected names of files beside it"):
            load(path)


def test_a_compressed_directory_takes_no_pickle(tmp_path, mark, cut):
    path = other(cut, tmp_path)
    (path / "model.safetensors").unlink()
    poisoned(path / "pytorch_model.bin", mark, "zip")
    with pytest.raises(FileNotFoundError, match=r"no weights at '.*model\.safetensors'"):
        load(path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json"])
def test_a_pickle_in_the_place_of_json(tmp_path, mark, dense, name):
    path = other(dense, tmp_path)
    poisoned(path / name, mark)
    with pytest.raises(SHOWN, match=str(path)):
        load(path)


def test_a_pickle_in_the_place_of_a_plan(tmp_path, mark):
    with pytest.raises(ValueError, match=r"plan\.json' is not a plan that this version reads"):
        Plan.load(poisoned(tmp_path / "plan.json", mark))


@pytest.mark.parametrize("form", ["pickle", "zip", "legacy"])
def test_a_pickle_to_import(tmp_path, mark, form):
    like = samples.directory(tmp_path / "like", "blip_vqa")
    with pytest.raises(ValueError, match="nothing was executed|which was not executed"):
        import_checkpoint(poisoned(tmp_path / "model.pth", mark, form), str(like), tmp_path / "out")


@pytest.mark.parametrize("make", CORPORA)
def test_pickles_in_the_place_of_annotations(tmp_path, mark, make):
    corpus = make(tmp_path / "data")
    for file in corpus.files:
        spoilt = copied(corpus, tmp_path / file.replace("/", "-"))
        poisoned(spoilt.folder / file, mark)
        with pytest.raises(ValueError, match=rf"{Path(file).name}'.* is not JSON"):
            spoilt.open()


@pytest.fixture
def run(checkpoint, tmp_path):
    """A recipe and its run directory, in which nothing ran yet."""
    config = tiny_config(checkpoint, tmp_path / "run")
    parser = build_parser()
    recipe = recipe_of(parser, parse(parser, ["--config", str(write(config, tmp_path / "recipe.yaml"))]))
    return recipe, RunDirectory(config["run_dir"], recipe.config)


@pytest.mark.parametrize("form", ["pickle", "zip"])
def test_a_pickle_to_resume_from(run, mark, form):
    recipe, directory = run
    last = directory.phase("search") / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    poisoned(last, mark, form, {"state_dict": {}, "callbacks": Malicious(mark)})
    with pytest.raises(ValueError, match=r"last\.ckpt' is no checkpoint to go on from: .*nothing in it was executed"):
        fit(recipe, directory)


def test_a_pickle_of_a_cluster(run, mark, monkeypatch):
    """Under SLURM, Lightning takes a checkpoint from the folder that it was not told of."""
    recipe, directory = run
    for key in ("JOB_ID", "NTASKS", "NNODES"):
        monkeypatch.setenv(f"SLURM_{key}", "1")
    for key in ("PROCID", "LOCALID", "NODEID"):
        monkeypatch.setenv(f"SLURM_{key}", "0")
    monkeypatch.setenv("SLURM_JOB_NAME", "training")
    directory.phase("search").mkdir()
    poisoned(directory.phase("search") / "hpc_ckpt_1.ckpt", mark, "zip", {"callbacks": Malicious(mark)})
    with pytest.raises((*SHOWN, pickle.UnpicklingError)):
        fit(recipe, directory)


@pytest.mark.parametrize(("name", "kind"), [("state.json", "JSON"), ("config.yaml", "YAML")])
def test_a_pickle_in_a_run_directory(run, mark, name, kind):
    recipe, directory = run
    poisoned(directory.path / name, mark)
    with pytest.raises(ValueError, match=rf"{name}' is not {kind}: .*; delete the run directory to start again"):
        RunDirectory(directory.path, recipe.config)


def test_yaml_that_would_run_something_in_a_run_directory(run, mark):
    recipe, directory = run
    (directory.path / "config.yaml").write_text(f"run_dir: !!python/object/apply:os.system ['touch {mark}']")
    with pytest.raises(ValueError, match=r"(?s)config\.yaml' is not YAML: .*; delete the run directory to start again"):
        RunDirectory(directory.path, recipe.config)


@pytest.mark.parametrize("form", ["pickle", "zip"])
def test_a_pickle_in_the_place_of_what_a_phase_carries_on(run, mark, form):
    recipe, directory = run
    directory.phase("finetune").mkdir()
    poisoned(directory.phase("finetune") / "carried.safetensors", mark, form)
    with pytest.raises(ValueError, match=r"carried\.safetensors' cannot be read as safetensors: .*; delete the"):
        fit(recipe, directory)


def test_a_pickle_to_report(run, mark):
    _, directory = run
    poisoned(directory.path / "summary.json", mark)
    with pytest.raises(ValueError, match=r"summary\.json' is not JSON"):
        write_report([directory.path])


@pytest.mark.parametrize(
    "text",
    [
        "run_dir: !!python/object/apply:os.system ['touch MARK']",
        "data: !!python/object/new:subprocess.Popen [[touch, MARK]]",
        "model: {class_path: subprocess.Popen, init_args: {args: [touch, MARK]}}",
        "trainer: {callbacks: [{class_path: subprocess.Popen, init_args: {args: [touch, MARK]}}]}",
        "trainer: {logger: {class_path: subprocess.Popen, init_args: {args: [touch, MARK]}}}",
        "data: {class_path: os.system, init_args: {command: touch MARK}}",
    ],
)
def test_a_recipe_that_would_run_something(checkpoint, tmp_path, mark, text):
    path = write(tiny_config(checkpoint, tmp_path / "run"), tmp_path / "good.yaml")
    (tmp_path / "evil.yaml").write_text(text.replace("MARK", str(mark)))
    parser = build_parser()
    with pytest.raises(SHOWN):
        recipe_of(parser, parse(parser, ["--config", str(path), "--config", str(tmp_path / "evil.yaml")]))


def test_code_beside_a_compressed_model_is_not_run(tmp_path, mark, cut):
    path = other(cut, tmp_path)
    for file in path.glob("*.py"):
        file.write_text(code(mark))
    expected = tiny.outputs(load(cut)[0])
    assert torch.equal(tiny.outputs(load(path)[0]), expected)


def test_code_beside_a_timm_model_is_not_run(tmp_path, mark):
    model = samples.model("timm_vit")
    sites = find_sites(model, KINDS)
    path = save(model, None, tmp_path / "model", Plan.whole(sites), KINDS)
    for file in path.glob("*.py"):
        file.write_text(code(mark))
    assert torch.equal(tiny.outputs(load(path)[0]), tiny.outputs(model))


AUTO = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoProcessor": "evil.Processor"}


def test_code_beside_a_model_that_is_known_is_not_run(tmp_path, mark, dense):
    path = other(dense, tmp_path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"auto_map": AUTO}))
    (path / "evil.py").write_text(code(mark))
    assert torch.equal(tiny.outputs(load(path)[0]), tiny.outputs(samples.model("clip")))


@pytest.mark.parametrize("file", ["config.json", "processor_config.json"])
def test_code_that_would_be_needed_is_not_run(tmp_path, mark, dense, cut, file):
    for number, directory in enumerate((dense, cut)):
        path = other(directory, tmp_path / str(number))
        content = json.loads((path / file).read_text())
        evil = {"model_type": "evil", "architectures": ["Model"], "processor_class": "Evil", "auto_map": AUTO}
        (path / file).write_text(json.dumps(content | evil))
        (path / "evil.py").write_text(code(mark))
        with pytest.raises(ValueError, match=f"{path}"):
            load(path)


@pytest.mark.parametrize("file", ["config.json", "processor_config.json"])
def test_nobody_is_asked_whether_to_run_code(tmp_path, mark, dense, cut, file, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    test_code_that_would_be_needed_is_not_run(tmp_path, mark, dense, cut, file)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"model_args": {"checkpoint_path": "MARK"}},
            r"has \['checkpoint_path'\]; a directory may set \['act_layer', ",
        ),
        (
            {"model_args": {"pretrained_cfg_overlay": {"file": "MARK"}}},
            r"has \['pretrained_cfg_overlay'\]; a directory",
        ),
        ({"model_args": ["MARK"]}, r"'model_args' in '.*config\.json' is a list; expected a mapping"),
        ({"architecture": "hf-hub:evil/model"}, r"is of architecture 'hf-hub:evil/model', which timm does not have"),
        ({"architecture": "local-dir:/"}, r"is of architecture 'local-dir:/', which timm does not have"),
        ({"architecture": ["vit"]}, r"is of architecture \['vit'\], which timm does not have"),
        ({"pretrained_cfg": "MARK"}, r"'pretrained_cfg' in '.*config\.json' is no mapping"),
    ],
)
def test_a_timm_model_asks_for_no_other_file(tmp_path, mark, change, text):
    path = samples.directory(tmp_path / "model", "timm_vit")
    poisoned(tmp_path / "evil.pth", mark, "zip")
    content = json.loads((path / "config.json").read_text()) | change
    (path / "config.json").write_text(json.dumps(content).replace("MARK", str(tmp_path / "evil.pth")))
    with pytest.raises(ValueError, match=text):
        load(path)


OUTSIDE = ("../secret.png", "/etc/secret.png", "a/../../secret.png", "..\\secret.png", "C:\\secret.png", "a\0.png")
PREFIXED = ("a/../../secret.png", "a\\..\\..\\secret.png", "a\0.png")
"""Of NLVR v1, whose names begin with the name of the part."""
NAMED = [make for make in CORPORA if make.__name__ not in ("vqa", "visual_genome", "daquar")]  # images go by numbers


@pytest.mark.parametrize("make", NAMED)
def test_names_in_annotations_do_not_leave_the_image_root(tmp_path, make):
    corpus = make(tmp_path / "data")
    Image.new("RGB", (20, 20)).save(tmp_path / "secret.png")
    corpus.open()
    for number, name in enumerate(PREFIXED if make.__name__ == "nlvr_1" else OUTSIDE):
        spoilt = copied(corpus, tmp_path / str(number))
        spoilt.image_named(name)
        file = Path(corpus.files[0]).name
        with pytest.raises(
            ValueError, match=rf"{file}', entry \d.*: image path .* leaves the image root; expected a rel"
        ):
            spoilt.open()


@pytest.mark.parametrize("make", CORPORA)
def test_images_are_no_links_to_elsewhere(tmp_path, make):
    corpus = make(tmp_path / "data")
    Image.new("RGB", (400, 100)).save(tmp_path / "secret.png")
    for path in [path for path in corpus.folder.rglob("*") if path.suffix in (".png", ".jpg")]:
        path.unlink()
        path.symlink_to(tmp_path / "secret.png")
    with pytest.raises(
        ValueError, match=r"image '.*' of the annotations is '.*', a link that leaves the image root for"
    ):
        corpus.open()


@pytest.mark.parametrize("make", CORPORA)
def test_folders_may_be_links(tmp_path, make):
    """A data set on another disk, and each of its folders on yet another."""
    made = make(tmp_path / "disk")
    for number, folder in enumerate(path for path in list(made.folder.iterdir()) if path.is_dir()):
        folder.rename(tmp_path / f"disk{number}")
        folder.symlink_to(tmp_path / f"disk{number}")
    corpus = copied(made, tmp_path / "copy")
    shutil.rmtree(corpus.folder)
    os.symlink(made.folder, corpus.folder)
    corpus.open()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("make", CORPORA)
def test_images_of_absurd_size(tmp_path, make):
    corpus = make(tmp_path / "data")
    for path in [path for path in corpus.folder.rglob("*") if path.suffix in (".png", ".jpg")]:
        claiming(path.with_suffix(".png"), 10_000, 10_000).rename(path)
    text = r"claims 10000 x 10000 pixels; more than 89478485 are refused\. Make it smaller"
    with pytest.raises(ValueError, match=rf"images are broken: image '.*(png|jpg)' {text}"):
        corpus.open(verify=True)
    with pytest.raises(ValueError, match=text):
        corpus.open(cache_images=True)
    data = corpus.open()
    data.set_processor(processor())
    with pytest.raises(ValueError, match=text):
        next(iter(data.train_dataloader()))
