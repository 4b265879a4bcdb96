"""Compressed directories in the hands of somebody who has no upop: another process, or another environment."""

import ast
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path

import pytest
import timm
import torch
from packaging.requirements import Requirement
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, ViTConfig, ViTForImageClassification

from tests import tiny
from tests.export import outside, samples
from tests.plans import random_plan
from upop.export import load, save
from upop.export.remote import auto_map, remote_files
from upop.families import find_sites
from upop.structure import KINDS
from upop.surgery import shrink_

HEADED = {
    "bert_words": lambda: BertForMaskedLM(BertConfig(**tiny.TEXT)),
    "vit_classes": lambda: ViTForImageClassification(ViTConfig(**tiny.VISION, num_labels=3)),
}
"""Models of a task: their weights are tied, or they have a head."""
NAMES = [*tiny.MODELS, *HEADED]
HUGGING_FACE = [name for name in NAMES if name != "timm_vit"]
BY_NAME = pytest.mark.parametrize("name", NAMES)
TASKS = {
    "clip": {"AutoModelForZeroShotImageClassification"},
    "siglip": {"AutoModelForZeroShotImageClassification"},
    "blip_vqa": {"AutoModelForVisualQuestionAnswering"},
    "blip_captioning": {"AutoModelForImageTextToText"},
    "bert_words": {"AutoModelForMaskedLM"},
    "vit_classes": {"AutoModelForImageClassification"},
}


def dense(name):
    if name not in HEADED:
        return samples.model(name)
    torch.manual_seed(0)
    return HEADED[name]().eval()


def inputs(name, model):
    """What the model takes; VQA tells nothing of its decoder but the loss, so it is asked for one."""
    given = tiny.inputs(tiny.build(name.partition("_")[0]) if name in HEADED else model)
    if name == "blip_vqa":
        given["labels"] = given["decoder_input_ids"]
    return {key: value.clone() for key, value in given.items()}


def write(root, names):
    """Compressed directories, and beside them what goes in."""
    for name in names:
        model = dense(name)
        sites = find_sites(model, KINDS)
        plan = random_plan(sites, 1)
        shrink_(model, sites, plan)
        processor = None if name in HEADED else samples.processor(name)
        save(model, processor, root / name, plan, KINDS, {"source": "tiny"})
        save_file(inputs(name, model), root / f"{name}.inputs.safetensors")
    return root


def take_outside(python, root, names):
    """Let another Python load them, away from this project, with no network and caches of its own."""
    caches = {"HF_HOME": str(root / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))} | caches
    command = [str(python), "-I", str(shutil.copy(outside.__file__, root)), *(str(root / name) for name in names)]
    ended = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]


def check(root, name, field="first"):
    """Compare what was said outside with what upop's own model says."""
    found = json.loads((root / f"{name}.found.json").read_text())
    assert "error" not in found, found["error"]
    given = load_file(root / f"{name}.inputs.safetensors")
    said = load_file(root / f"{name}.outputs.safetensors")
    torch.testing.assert_close(said[field], outside.outputs(load(root / name)[0], given), atol=1e-5, rtol=1e-5)
    return found, said


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = write(tmp_path_factory.mktemp("outside"), NAMES)
    take_outside(sys.executable, root, NAMES)
    return root


@BY_NAME
def test_outputs_are_those_of_upop(root, name):
    found, _ = check(root, name)
    assert not found["training"]
    assert found["shapes"] == outside.shapes(load(root / name)[0])


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_every_weight_is_loaded_and_none_is_left(root, name):
    found, _ = check(root, name)
    assert {kind: keys for kind, keys in found["keys"].items() if keys} == {}
    assert found["from_config"] == found["shapes"]


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_names_tell_the_truth(root, name):
    found, _ = check(root, name)
    model = load(root / name)[0]
    assert found["class"] == [type(model).__name__, "modeling_upop", type(model.config).__name__]
    assert set(found["autos"].values()) == {type(model).__name__}
    assert set(found["autos"]) >= {"AutoModel"} | TASKS.get(name, set())
    config = json.loads((root / name / "config.json").read_text())
    assert config["architectures"] == [type(model).__name__]
    assert config["model_type"] == model.config.model_type


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_what_is_saved_again_is_the_same_directory(root, name):
    found, _ = check(root, name, "again")
    assert found["configs"][0] == found["configs"][1]
    first, again, third = (root / f"{name}{end}" for end in ("", "_again", "_third"))
    codes = {file.name for file in first.glob("*.py")}
    assert {file.name for file in again.glob("*.py")} == codes
    assert all((again / file).read_bytes() == (first / file).read_bytes() for file in codes)
    assert all((third / file.name).read_bytes() == file.read_bytes() for file in again.iterdir())
    configs = [json.loads((path / "config.json").read_text()) for path in (first, again)]
    assert configs[0]["compression"] == configs[1]["compression"]
    assert configs[0]["auto_map"] == configs[1]["auto_map"]
    weights = [load_file(path / "model.safetensors") for path in (first, again)]
    assert all(torch.equal(weights[0][key], value) for key, value in weights[1].items() if key in weights[0])
    given = load_file(root / f"{name}.inputs.safetensors")
    ours = [outside.outputs(load(path)[0], given) for path in (first, again)]
    assert torch.equal(*ours)


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_half_precision(root, name):
    found, said = check(root, name)
    assert found["dtypes"] == ["torch.bfloat16"]
    assert said["half"].isfinite().all()


@pytest.mark.parametrize("name", sorted(set(HUGGING_FACE) - {"bert_words", "vit_classes"}))
def test_processors(root, name):
    found, _ = check(root, name)
    assert found["processor"] == type(samples.processor(name)).__name__


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_without_trust_nothing_is_loaded_in_silence(root, name):
    found, _ = check(root, name)
    expected = "trust_remote_code=True" if name == "blip_nlvr" else "`ignore_mismatched_sizes`"
    assert expected in found["untrusted"]


def test_images_of_timm(root):
    found, _ = check(root, "timm_vit")
    assert found["data"]["input_size"] == [3, 32, 32]


@BY_NAME
def test_the_files_import_what_everybody_has(name):
    allowed = {"__future__", "typing", "json", "pathlib", "torch", "transformers", "timm", "safetensors"}
    files = remote_files(dense(name))
    for text in files.values():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                assert {alias.name.partition(".")[0] for alias in node.names} <= allowed
            elif isinstance(node, ast.ImportFrom) and node.level:
                assert f"{node.module}.py" in files
            elif isinstance(node, ast.ImportFrom):
                assert node.module.partition(".")[0] in allowed or f"{node.module}.py" in files
    assert "modeling_upop.py" in files
    assert "import upop" not in "".join(files.values())


@pytest.mark.parametrize("name", ["clip", "blip_vqa", "blip_nlvr"])
def test_the_files_are_as_tidy_as_ours(tmp_path, name):
    for file, text in remote_files(dense(name)).items():
        (tmp_path / file).write_text(text)
    config = Path(__file__).parents[2] / "pyproject.toml"
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--config", str(config), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout


def test_auto_classes_are_those_that_have_the_model():
    assert auto_map(dense("vit")) == {"AutoModel": "modeling_upop.ViTModel"}
    assert auto_map(dense("blip_nlvr")) == {
        "AutoModel": "modeling_upop.BlipForVisualReasoning",
        "AutoConfig": "modeling_blip_nlvr.BlipNlvrConfig",
    }


LENT = ("torch", "torchvision", "torchgen", "functorch", "triton", "nvidia", "cuda")
"""Packages that the second environment sees in ours: with CUDA's libraries they are 5 GB and minutes to install."""
WANTED = ("torch", "transformers", "safetensors", "timm", "pillow")


def closure(names):
    """What these packages need, and what that needs, as far as it is installed here; not what is lent."""
    todo, found = list(names), {}
    while todo:
        name = todo.pop()
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue
        key = package.metadata["Name"].lower().replace("_", "-")
        if key in found:
            continue
        found[key] = package.version
        needed = [Requirement(line) for line in requires(key) or []]
        todo += [need.name for need in needed if need.marker is None or need.marker.evaluate({"extra": ""})]
    return {name: version for name, version in found.items() if not name.startswith(LENT)}


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """A second environment with torch, transformers, safetensors and timm.

    Everything is installed by pip at the versions that we have, save torch, torchvision and CUDA: a .pth file shows
    these, and these alone, by links in a folder of its own.
    """
    root = tmp_path_factory.mktemp("stranger")
    subprocess.run([sys.executable, "-m", "venv", str(root / "venv")], check=True)
    python = root / "venv" / "bin" / "python"
    lent = root / "lent"
    lent.mkdir()
    for entry in Path(torch.__file__).parents[1].iterdir():
        if entry.name.startswith(LENT) and not entry.name.startswith("torchmetrics"):
            (lent / entry.name).symlink_to(entry)
    packages = next((root / "venv" / "lib").glob("python*/site-packages"))
    (packages / "lent.pth").write_text(f"{lent}\n")
    wanted = [f"{name}=={version}" for name, version in sorted(closure(WANTED).items())]
    command = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", *wanted]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return python


@pytest.mark.slow
def test_another_environment(stranger, tmp_path):
    names = ["clip", "siglip", "dual_encoder", "blip_retrieval", "blip_vqa", "blip_captioning", "blip_nlvr", "timm_vit"]
    write(tmp_path, names)
    take_outside(stranger, tmp_path, names)
    for name in names:
        found, _ = check(tmp_path, name)
        assert not found["installed"]
    listed = subprocess.run([str(stranger), "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert timm.__version__ in listed
    assert "lightning" not in listed
    assert "upop" not in listed


def test_a_cut_model_loads_where_upop_has_told_transformers_of_its_dense_class(tmp_path):
    """In a process of its own: what it loads stays registered."""
    model = dense("blip_nlvr")
    sites = find_sites(model, ("head_dim", "neuron"))
    plan = random_plan(sites, seed=1)
    shrink_(model, sites, plan)
    path = save(model, samples.processor("blip_nlvr"), tmp_path / "cut", plan, ("head_dim", "neuron"))
    code = """
import sys, torch, upop
from transformers import AutoModel
ours, _ = upop.load(sys.argv[1])
theirs = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
states = ours.state_dict()
assert type(theirs).__module__.startswith("transformers_modules."), type(theirs).__module__
assert all(torch.equal(states[name], value) for name, value in theirs.state_dict().items())
assert type(upop.load(sys.argv[1])[0]) is type(ours)
"""
    env = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, env=env, check=False
    )
    assert ended.returncode == 0, ended.stderr
