"""What is written, run here by onnxruntime or torch on inputs of these tests, against the models themselves."""

import importlib
import json
import os
import stat

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoProcessor

from tests import tiny
from tests.export import samples
from tests.plans import random_plan
from upop.export import export_portable, load, save, write_portable
from upop.export.graphs import files
from upop.export.portable import TOLERANCE
from upop.families import find_sites
from upop.masks import Masks
from upop.structure import KINDS, Plan
from upop.surgery import shrink_

portable = importlib.import_module("upop.export.portable")
needs_onnx = pytest.mark.skipif(bool(files.missing_packages()), reason="needs pip install upop[onnx]")


def quickly(*quick):
    """All models, of which those that are not ``quick`` are left to the slow tests."""
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in tiny.MODELS]


SIZES = ((1, 12), (7, 12), (1, 5), (7, 5))
"""Samples and tokens: one text of every position, and some with padding."""


def made(path, name, cut=True):
    """A model directory and the model in it."""
    model = samples.model(name)
    if not cut:
        return save(model, samples.processor(name), path), model
    sites = find_sites(model, KINDS)
    plan = random_plan(sites, seed=3)
    shrink_(model, sites, plan)
    return save(model, samples.processor(name), path, plan, KINDS), model


def given(model, batch, length):
    """Inputs of a model: texts end at other places, and what comes after is padding."""
    generator = torch.Generator().manual_seed(length)
    side = 32 if type(model).__name__ == "VisionTransformer" else 16
    images = torch.randn(batch, 3, side, side, generator=generator)
    if type(model).__name__ == "BlipForVisualReasoning":
        images = torch.stack([images, images.flip(-1) * 2], dim=1)
    ids = torch.randint(2, 50, (batch, length), generator=generator)
    ends = torch.tensor([max(1, length - row) for row in range(batch)])[:, None]
    places = torch.arange(length)
    ids = torch.where(places < ends - 1, ids, 1)  # 1 ends and pads
    return {"pixel_values": images, "input_ids": ids, "attention_mask": (places < ends).long()}


def facts(directory):
    return json.loads((directory / "export.json").read_text())


def runners(directory):
    """A function of each graph of an export, from its inputs by name to its outputs by name."""
    said, found = facts(directory), {}
    for name, graph in said["graphs"].items():
        path = directory / next(iter(graph["files"]))
        if said["kind"] == "onnx":
            session = importlib.import_module("onnxruntime").InferenceSession(str(path))

            def run(inputs, session=session):
                names = [port.name for port in session.get_inputs()]
                values = session.run(None, {name: inputs[name].numpy() for name in names})
                return {port.name: torch.tensor(v) for port, v in zip(session.get_outputs(), values, strict=True)}
        else:
            module = torch.export.load(path).module()

            def run(inputs, module=module, graph=graph):
                values = module(**{name: inputs[name] for name in graph["inputs"]})
                values = values if isinstance(values, tuple) else (values,)
                return dict(zip(graph["outputs"], values, strict=True))

        found[name] = run
    return found


def agree(found, expected, size=0.0):
    """Within half of what an export lets pass, of the largest number or of the terms that it is a sum of."""
    assert found.shape == expected.shape
    size = max(float(expected.abs().max()), size)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=TOLERANCE / 2 * size)


def check_against(model, run, inputs):
    """Everything that the graphs of one model say, against the model as its library calls it."""
    kind = type(model).__name__
    if kind in ("CLIPModel", "SiglipModel", "VisionTextDualEncoderModel"):
        said, found = model(**inputs), run["model"](inputs)
        for name in ("image_embeds", "text_embeds"):
            agree(found[name], said[name])
        terms = model.logit_scale.exp() + getattr(model, "logit_bias", torch.zeros(())).abs()
        agree(found["logits_per_image"], said.logits_per_image, float(terms))
        agree(run["image"](inputs)["image_embeds"], said.image_embeds)
        agree(run["text"](inputs)["text_embeds"], said.text_embeds)
    elif kind == "BlipForImageTextRetrieval":
        image, text = run["image"](inputs)["image_embeds"], run["text"](inputs)["text_embeds"]
        cosines = model(**inputs, use_itm_head=False).itm_score
        np.testing.assert_allclose((image @ text.T).numpy(), cosines.numpy(), atol=1e-5)
        assert {name: value.shape for name, value in run["model"](inputs).items()} == {
            "image_embeds": image.shape,
            "text_embeds": text.shape,
        }
        agree(run["matching"](inputs)["itm_score"], model(**inputs).itm_score)
    elif kind == "BlipForQuestionAnswering":
        answers, seen = inputs["input_ids"][:, :3], []
        hook = model.text_decoder.register_forward_hook(lambda _, __, output: seen.append(output.logits))
        model(**inputs, decoder_input_ids=answers)
        hook.remove()
        states = inputs | run["image"](inputs)
        states |= run["question"](states) | {"decoder_input_ids": answers}
        agree(run["answer"](states)["logits"], seen[0])
    elif kind == "BlipForConditionalGeneration":
        states = inputs | run["image"](inputs)
        agree(run["caption"](states)["logits"], model(**inputs).logits)
    elif kind == "BlipForVisualReasoning":
        agree(run["model"](inputs)["logits"], model(**inputs).logits)
    elif kind == "VisionTransformer":
        agree(run["model"](inputs)["logits"], model(inputs["pixel_values"]))
    else:
        named = ("input_ids", "attention_mask") if kind == "BertModel" else ("pixel_values",)
        said = model(**{name: inputs[name] for name in named})
        agree(run["model"](inputs)["last_hidden_state"], said.last_hidden_state)


@needs_onnx
@torch.no_grad()
@pytest.mark.parametrize("name", quickly("timm_vit", "blip_nlvr"))
def test_onnx_of_a_cut_model_computes_what_the_model_computes(tmp_path, name):
    path, model = made(tmp_path / "model", name)
    exported = export_portable(path)
    assert exported.directory == path / "onnx"
    for batch, length in SIZES:
        check_against(model, runners(path / "onnx"), given(model, batch, length))
    assert torch.equal(tiny.outputs(load(path)[0]), tiny.outputs(model))  # the folder in it does not disturb


@needs_onnx
@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("name", tiny.MODELS)
def test_onnx_of_a_dense_model_computes_what_the_model_computes(tmp_path, name):
    path, model = made(tmp_path / "model", name, cut=False)
    export_portable(path, tmp_path / "out")
    for batch, length in SIZES:
        check_against(model, runners(tmp_path / "out"), given(model, batch, length))


@torch.no_grad()
@pytest.mark.parametrize("name", quickly("timm_vit"))
def test_programs_of_torch_compute_what_the_model_computes(tmp_path, name):
    path, model = made(tmp_path / "model", name)
    exported = export_portable(path, format="torch")
    assert (exported.directory, exported.opset) == (path / "torch", None)
    for batch, length in SIZES:
        check_against(model, runners(path / "torch"), given(model, batch, length))


def vit():
    return samples.model("vit")


def files_in(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An export of a cut ViT with torch, and its directory."""
    path, _ = made(tmp_path_factory.mktemp("models") / "vit", "vit")
    return export_portable(path, format="torch")


def test_what_the_directory_holds(exported):
    path = exported.directory
    assert sorted(os.listdir(path)) == ["export.json", "model.pt2", "preprocessor_config.json"]
    assert [entry for entry in os.listdir(path.parent) if entry.startswith(".")] == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o644}


def test_what_is_said_of_it(exported):
    said, graph = facts(exported.directory), facts(exported.directory)["graphs"]["model"]
    assert (said["format"], said["model"], said["kind"], said["opset"]) == (1, "ViTModel", "torch", None)
    assert (said["precision"], said["tolerance"], said["images"]) == ("float32", 1e-4, "preprocessor_config.json")
    assert said["versions"]["torch"] == str(torch.__version__)
    assert set(said["versions"]) == {"torch", "transformers"}
    assert graph["files"] == {"model.pt2": (exported.directory / "model.pt2").stat().st_size}
    assert graph["inputs"] == {"pixel_values": {"shape": ["batch", 3, 16, 16], "dtype": "float32"}}
    assert graph["outputs"] == {
        "last_hidden_state": {
            "shape": ["batch", 5, 32],
            "dtype": "float32",
            "normalised": False,
            "largest_difference": exported.graphs[0].difference,
        }
    }
    assert graph["limits"] == {"batch": [1, None]}
    assert graph["checked_with"] == [{"batch": 1}, {"batch": 5}, {"batch": 2}]


def test_what_a_person_is_told(exported):
    assert (exported.format, exported.opset, exported.tolerance) == ("torch", None, 1e-4)
    assert exported.others == ["export.json", "preprocessor_config.json"]
    ((file, size, difference),) = exported.rows()
    assert (file, difference) == ("model.pt2", f"{exported.graphs[0].difference:.1e}")
    assert exported.lines() == [
        "torch.export, tolerance 1.0e-04",
        f"model.pt2, {size}, within {difference} of the model",
        "beside them export.json, preprocessor_config.json",
        f"wrote {exported.directory}",
    ]


@needs_onnx
@torch.no_grad()
def test_a_dual_encoder_with_its_processor(tmp_path):
    path, model = made(tmp_path / "model", "clip")
    exported = export_portable(path, opset=20)
    assert exported.opset == 20
    assert exported.lines()[0] == "ONNX, opset 20, tolerance 1.0e-04"
    assert [file for file, _, _ in exported.rows()] == ["image.onnx", "text.onnx", "model.onnx"]
    said = facts(path / "onnx")
    assert set(said["versions"]) == {"torch", "transformers", *files.PACKAGES}
    outputs = said["graphs"]["model"]["outputs"]
    assert {name: (port["shape"], port["normalised"]) for name, port in outputs.items()} == {
        "image_embeds": (["images", 16], True),
        "text_embeds": (["texts", 16], True),
        "logits_per_image": (["images", "texts"], False),
    }
    assert said["graphs"]["text"]["limits"] == {"texts": [1, None], "text_length": [1, 12]}
    processor = AutoProcessor.from_pretrained(path / "onnx")
    image = np.full((20, 30, 3), 128, dtype=np.uint8)
    batch = processor(text=["w3 w4", "w5"], images=[image], return_tensors="pt", padding=True)
    run = runners(path / "onnx")
    check_against(model, run, batch)
    for number, length in SIZES:
        check_against(model, run, given(model, number, length))


def test_an_older_export_is_replaced_whole(exported, tmp_path):
    to = tmp_path / "out"
    write_portable(vit(), None, to, "torch")
    (to / "stale.bin").write_text("old")
    again = write_portable(vit(), samples.processor("vit"), to, "torch")
    assert sorted(os.listdir(to)) == ["export.json", "model.pt2", "preprocessor_config.json"]
    assert os.listdir(tmp_path) == ["out"]
    assert again.directory == to


def test_an_empty_directory_will_do(tmp_path):
    (tmp_path / "out").mkdir()
    write_portable(vit(), None, tmp_path / "out", "torch")
    assert facts(tmp_path / "out")["images"] is None


@pytest.fixture
def perturbed(monkeypatch):
    """Between trace and file, one weight of the program changes; the model keeps its own."""
    real = torch.export.save

    def save_another(program, path):
        name = next(name for name in program.state_dict if name.endswith("fc1.bias"))
        program.state_dict[name] = nn.Parameter(program.state_dict[name].detach() + 0.1)
        real(program, path)

    monkeypatch.setattr(torch.export, "save", save_another)


def test_a_graph_that_computes_something_else_fails_and_leaves_nothing(tmp_path, perturbed):
    text = (
        r"^model\.pt2 does not compute what the model does: last_hidden_state .* tolerance of 1\.0e-04; nothing was exp"
    )
    path, _ = made(tmp_path / "model", "vit")
    before = files_in(path)
    with pytest.raises(ValueError, match=text) as error:
        export_portable(path, format="torch")
    assert "\n" not in str(error.value)
    assert files_in(path) == before


def test_a_failed_export_leaves_an_older_one(exported, perturbed):
    before = files_in(exported.directory)
    with pytest.raises(ValueError, match="nothing was exported"):
        export_portable(exported.directory.parent, format="torch")
    assert files_in(exported.directory) == before
    assert [entry for entry in os.listdir(exported.directory.parent) if entry.startswith(".")] == []


@needs_onnx
def test_rounding_is_more_than_no_tolerance(tmp_path):
    with pytest.raises(ValueError, match=r"model\.onnx does not compute .* more than the tolerance of 0\.0e\+00"):
        write_portable(vit(), None, tmp_path / "out", tolerance=0.0)
    assert os.listdir(tmp_path) == []


def test_weights_of_another_precision_are_exported_in_float32(tmp_path):
    model = vit().to(torch.bfloat16)
    path = save(model, samples.processor("vit"), tmp_path / "model", *whole(model))
    export_portable(path, format="torch")
    inputs = given(model, 3, 5)
    with torch.no_grad():
        found = runners(path / "torch")["model"](inputs)["last_hidden_state"]
        agree(found, model.float()(inputs["pixel_values"]).last_hidden_state)


def whole(model):
    """A plan that keeps everything, since a dense directory is read in float32."""
    sites = find_sites(model, KINDS)
    return Plan.whole(sites), KINDS


def test_timm_says_how_images_are_prepared(tmp_path):
    model = samples.model("timm_vit")
    model.pretrained_cfg = dict(model.pretrained_cfg) | {"mean": (0.25, 0.5, 0.75)}
    write_portable(model, None, tmp_path / "out", "torch")
    said = facts(tmp_path / "out")
    assert (said["images"]["mean"], said["model"]) == ([0.25, 0.5, 0.75], "VisionTransformer")
    assert said["images"]["input_size"] == [3, 32, 32]
    assert set(said["versions"]) == {"torch", "timm"}


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (
            {"format": "onx"},
            ValueError,
            r"unknown format 'onx'; choose from \['onnx', 'torch'\]; did you mean 'onnx'\?",
        ),
        ({"format": "tflite"}, ValueError, r"unknown format 'tflite'; choose from \['onnx', 'torch'\]$"),
        (
            {"format": "torch", "opset": 18},
            ValueError,
            "opset 18 was given for format 'torch', which has none; leave it",
        ),
        ({"opset": 17}, ValueError, "opset 17 cannot be written; choose from 18 to 23"),
        ({"format": "torch", "tolerance": -1.0}, ValueError, r"tolerance -1\.0 is not in \[0, 1\); it is a part of"),
        ({"format": "torch", "tolerance": float("nan")}, ValueError, "tolerance nan is not in"),
        (
            {"format": "torch", "to": None},
            ValueError,
            "there is no directory './nowhere' to put the export into; give a",
        ),
        ({"format": "torch"}, FileNotFoundError, "no checkpoint directory at './nowhere'"),
    ],
)
def test_arguments_are_checked_before_anything_is_loaded(tmp_path, monkeypatch, arguments, error, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=text):
        export_portable("./nowhere", **{"to": "out"} | arguments)
    assert os.listdir(tmp_path) == []


def test_only_exports_are_replaced(tmp_path):
    path, _ = made(tmp_path / "model", "vit")
    before = files_in(path)
    text = r"model' holds \['README\.md', 'config\.json', .*\] \(\d\) and no export\.json, so it is no export; give"
    with pytest.raises(FileExistsError, match=text):
        export_portable(path, path, format="torch")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="file' is a file; give a directory"):
        export_portable(path, tmp_path / "file", format="torch")
    assert files_in(path) == before


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(portable, "missing_packages", lambda: ["onnxruntime"])
    text = r"need onnx, onnxscript, onnxruntime, of which \['onnxruntime'\] is not installed; pip install \"upop\[onnx"
    with pytest.raises(FileNotFoundError, match=text):
        export_portable(tmp_path / "no", tmp_path / "out")
    write_portable(vit(), None, tmp_path / "out", "torch")  # which needs none of them


def test_models_that_are_not_ready_are_refused(tmp_path):
    model = vit()
    masks = Masks(model, find_sites(model))
    with pytest.raises(ValueError, match=r"has masks \(or another parametrisation\) attached; detach them before exp"):
        write_portable(model, None, tmp_path / "out", "torch")
    masks.detach()
    with pytest.raises(ValueError, match=r"is in training mode, in which it drops at random; call eval\(\)"):
        write_portable(model.train(), None, tmp_path / "out", "torch")
    with pytest.raises(
        ValueError, match=r"is torch\.float16 on cpu; graphs are made in float32 on the CPU: call float"
    ):
        write_portable(model.eval().half(), None, tmp_path / "out", "torch")
    with pytest.raises(ValueError, match="cannot make graphs of a Linear"):
        write_portable(nn.Linear(2, 2).eval(), None, tmp_path / "out", "torch")
    assert os.listdir(tmp_path) == []
