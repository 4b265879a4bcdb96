"""The models of a benchmark: refused before anything is loaded, named apart, and fed alike."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.export import samples
from upop.export import save
from upop.runs.bench_models import check_sources, common_inputs, facts, labels, load_models


def test_names_are_as_long_as_it_takes() -> None:
    assert labels(["a/dense"]) == ["dense"]
    assert labels(["dense", "runs/a/compressed"]) == ["dense", "compressed"]
    assert labels(["runs/a/x/compressed", "runs/b/x/compressed"]) == ["a/x/compressed", "b/x/compressed"]
    assert labels(["timm/vit", "vit"]) == ["timm/vit", "vit"]


def test_the_working_directory_has_a_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert labels(["."]) == ["here"]


@pytest.mark.parametrize("path", ["no/such/place", "./nothing", "nothing", "/nothing", "openai/clip-vit-base-patch32"])
def test_a_directory_that_is_missing(path: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"no model directory at '{path}'; give one with a config.json"):
        check_sources([path], 1)


@pytest.mark.parametrize("path", ["no/such/place", "./nothing", "~/nothing"])
def test_a_baseline_that_is_missing(tmp_path: Path, path: str) -> None:
    model = samples.directory(tmp_path / "clip")
    with pytest.raises(FileNotFoundError, match=f"no model directory at '{path}'"):
        check_sources([path, str(model)], 1)


@pytest.mark.parametrize("name", ["openai/clip-vit-base-patch32", "timm/vit_tiny_patch16_224"])
def test_a_baseline_may_be_elsewhere(tmp_path: Path, name: str) -> None:
    check_sources([name, str(samples.directory(tmp_path / "clip"))], 1)


def test_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"no config.json in '.*' \(it holds \['notes.txt'\]\); is it a model"):
        check_sources([str(tmp_path)], 1)
    with pytest.raises(FileNotFoundError, match="no model directory at '.*notes.txt'"):
        check_sources([str(tmp_path / "notes.txt")], 1)


def test_none_and_twice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model to time; give one or several model directories"):
        check_sources(["openai/clip-vit-base-patch32"], 0)
    model = samples.directory(tmp_path / "clip")
    with pytest.raises(ValueError, match="'.*clip/.' is given twice; give each model once|'.*clip' is given twice"):
        check_sources([str(model), os.path.join(model, ".")], 1)


def test_loaded_and_described(tmp_path: Path) -> None:
    model, processor = samples.model("clip"), samples.processor("clip")
    path = save(model, processor, tmp_path / "clip")
    loaded = load_models(["it"], [str(path)])
    assert torch.equal(tiny.outputs(loaded["it"]), tiny.outputs(model))
    found = facts("it", loaded["it"], 123, str(path))
    params = sum(parameter.numel() for parameter in model.parameters())
    assert (found.name, found.source, found.architecture, found.flops) == ("it", str(path), "CLIPModel", 123)
    assert found.params == params
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    assert found.weight_bytes == 4 * params + buffers
    assert found.file_bytes == (path / "model.safetensors").stat().st_size
    assert facts("it", model, 123).file_bytes is None
    assert facts("it", model, 123, "openai/clip-vit-base-patch32").file_bytes is None


def test_models_have_to_take_the_same() -> None:
    models = {"dense": tiny.build("clip"), "cut": tiny.build("clip", seed=1), "other": tiny.build("vit")}
    same = common_inputs({name: models[name] for name in ("dense", "cut")})
    assert {name: tuple(value.shape) for name, value in same.items()} == {
        "pixel_values": (1, 3, 16, 16),
        "input_ids": (1, 12),
    }
    message = (
        r"dense takes input_ids \(12,\), pixel_values \(3, 16, 16\), other takes pixel_values \(3, 16, 16\); models to "
        "compare have to take the same inputs"
    )
    with pytest.raises(ValueError, match=message):
        common_inputs(models)
