"""Directories are looked at before they are loaded, and whatever is wrong is said in one line with their place."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.export import samples
from upop.export import load
from upop.export.vetting import LONGEST, blamed, read_object, vet, weight_files


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return samples.directory(tmp_path_factory.mktemp("vetted") / "clip")


@pytest.fixture
def path(made, tmp_path):
    return shutil.copytree(made, tmp_path / "clip")


def change(path, **more):
    content = json.loads((path / "config.json").read_text())
    for key, value in more.items():
        tower, _, name = key.rpartition("__")
        (content[tower] if tower else content)[name] = value
    (path / "config.json").write_text(json.dumps(content))


def test_good_directories_and_other_names_pass(path, tmp_path):
    vet(path)
    vet(tmp_path)
    vet(tmp_path / "nowhere")
    (path / "model.safetensors").unlink()
    vet(path)  # a config alone can be built with random weights


@pytest.mark.parametrize("key", ["vision_config__num_hidden_layers", "text_config__num_hidden_layers", "num_labels"])
def test_absurd_numbers_are_not_counted_through(path, key):
    change(path, **{key: 10**9})
    name = key.rpartition("__")[2]
    with pytest.raises(ValueError, match=rf"config\.json' asks for {name} of 1000000000; at most \d+ are b"):
        load(path)


def test_sites_of_a_plan_are_named_and_not_counted(path):
    """Names of sites say ``layers`` and stand beside numbers of units, of which there may be thousands."""
    change(path, compression={"units": {"text_model.encoder.layers.0.mlp.neuron": 4096}})
    vet(path)


@pytest.mark.parametrize(
    "more",
    [
        {"text_config__vocab_size": 10**8},
        {"vision_config__image_size": 10**6},
        {"text_config__intermediate_size": 10**8},
    ],
)
def test_a_model_is_not_much_larger_than_its_weights(path, more):
    change(path, **more)
    with pytest.raises(ValueError, match=r"config\.json' describes a model of .* MiB, its weights are 0\.\d MiB; d"):
        load(path)


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8, torch.bool, torch.int8])
def test_weights_are_floating_point_numbers(path, kind):
    tensors = load_file(path / "model.safetensors")
    tensors["visual_projection.weight"] = tensors["visual_projection.weight"].to(kind)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(ValueError, match=r"safetensors' holds visual_projection\.weight in \w+; expected floating"):
        load(path)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_numbers_of_all_sizes_pass(path, kind):
    tensors = {name: value.to(kind) for name, value in load_file(path / "model.safetensors").items()}
    save_file(tensors, path / "model.safetensors")
    vet(path)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, "\x00", "1e999"])
def test_a_config_is_a_mapping(path, content):
    (path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json' (is not JSON: .*; copy it again|holds a \w+; expected)"):
        load(path)


@pytest.mark.parametrize(
    ("named", "text"),
    [
        (["pipeline"], "names 'pipeline', which is no model"),
        (["Trainer"], "names 'Trainer', which is no model"),
        (["models"], "names 'models', which is no model"),
        ([1.5], r"is \[1\.5\]; expected a list of names of classes"),
        ("CLIPModel", "is 'CLIPModel'; expected a list of names of classes"),
    ],
)
def test_the_class_is_a_model(path, named, text):
    change(path, architectures=named)
    with pytest.raises(ValueError, match=rf"'architectures' in '.*config\.json' {text}"):
        load(path)


@pytest.mark.parametrize("listed", [None, [], {}, {"weight_map": []}, {"weight_map": {"a": 1}}, {"weight_map": {}}])
def test_the_list_of_files_is_one(path, listed):
    (path / "model.safetensors").unlink()
    (path / "model.safetensors.index.json").write_text(json.dumps(listed))
    with pytest.raises(ValueError, match=r"index\.json' (has no 'weight_map' from|holds a \w+; exp)"):
        load(path)


@pytest.mark.parametrize("name", ["../a.safetensors", "/a.safetensors", "a/b.safetensors", "..", "", "a\0"])
def test_files_of_weights_lie_beside_their_list(path, name):
    (path / "model.safetensors").rename(path.parent / "a.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"logit_scale": name}}))
    with pytest.raises(ValueError, match=r"index\.json' names \[.*\]; expected names of files beside it"):
        load(path)


def test_weights_of_the_hubs_cache_are_links(path, tmp_path):
    (path / "model.safetensors").rename(tmp_path / "blob")
    (path / "model.safetensors").symlink_to(tmp_path / "blob")
    assert weight_files(path) == [path / "model.safetensors"]
    load(path)


def test_objects_are_read(tmp_path):
    (tmp_path / "a.json").write_bytes('{"a": "\u00e4"}'.encode())
    assert read_object(tmp_path / "a.json") == {"a": "\u00e4"}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (KeyError("x"), "'here' cannot be loaded: KeyError: 'x'"),
        (RuntimeError("a\n  b"), "'here' cannot be loaded: RuntimeError: a b"),
        (AssertionError(), "'here' cannot be loaded: AssertionError: no reason given"),
        (ValueError("no such thing"), "'here' cannot be loaded: no such thing"),
        (ValueError("here is wrong"), "here is wrong"),
        (
            pickle.UnpicklingError("evil"),
            "'here' cannot be loaded: its weights are no tensors alone, or broken, and not",
        ),
    ],
)
def test_errors_say_where(error, text):
    with pytest.raises(ValueError, match=f"^{text}"), blamed("here"):
        raise error


def test_long_errors_are_cut_and_those_of_the_system_kept():
    with pytest.raises(ValueError, match=rf"cannot be loaded: x{{{LONGEST}}}\.\.\.$"), blamed("here"):
        raise ValueError("x" * 1000)
    with pytest.raises(FileNotFoundError, match=r"^gone$"), blamed("here"):
        raise FileNotFoundError("gone")
    with pytest.raises(KeyboardInterrupt), blamed("here"):
        raise KeyboardInterrupt
