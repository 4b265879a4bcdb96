import importlib
import json
import os
import pickle
import stat

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM

import upop
from tests import tiny
from tests.export import samples
from tests.plans import random_plan
from upop.export import load, save
from upop.export.directory import plan_of
from upop.families import find_sites
from upop.masks import Masks
from upop.structure import KINDS, Plan
from upop.surgery import shrink_

MODELS = pytest.mark.parametrize("name", tiny.MODELS)
directory = importlib.import_module("upop.export.directory")


def cut(name="clip", seed=1, kinds=KINDS):
    """A cut model, its plan and its processor."""
    model = samples.model(name)
    sites = find_sites(model, kinds)
    plan = random_plan(sites, seed)
    shrink_(model, sites, plan)
    return model, plan, samples.processor(name)


@pytest.fixture
def saved(tmp_path):
    model, plan, processor = cut()
    return save(model, processor, tmp_path / "out", plan, KINDS, {"source": "tiny"})


@MODELS
def test_dense_round_trip(tmp_path, name):
    model, processor = samples.model(name), samples.processor(name)
    path = save(model, processor, tmp_path / "deep" / "dense")
    loaded, other = load(path)
    assert torch.equal(tiny.outputs(loaded), tiny.outputs(model))
    assert not loaded.training
    assert type(other) is type(processor)
    assert plan_of(path) is None
    assert not (path / "compression.json").exists()


@MODELS
@pytest.mark.parametrize("kinds", [("head",), ("head_dim", "neuron"), KINDS], ids="-".join)
def test_cut_round_trip(tmp_path, name, kinds):
    model, plan, processor = cut(name, kinds=kinds)
    path = save(model, processor, tmp_path / "cut", plan, kinds)
    loaded, other = load(str(path))
    assert torch.equal(tiny.outputs(loaded), tiny.outputs(model))
    assert not loaded.training
    assert list(loaded.state_dict()) == list(model.state_dict())
    shapes = [(one.shape, one.dtype, one.requires_grad) for one in model.parameters()]
    assert [(one.shape, one.dtype, one.requires_grad) for one in loaded.parameters()] == shapes
    assert type(other) is type(processor)
    assert plan_of(path) == (plan, list(kinds))


@MODELS
def test_a_loaded_model_can_be_saved_and_loaded_again(tmp_path, name):
    model, plan, processor = cut(name)
    loaded, other = load(save(model, processor, tmp_path / "one", plan, KINDS))
    again, _ = load(save(loaded, other, tmp_path / "two", plan, KINDS))
    assert torch.equal(tiny.outputs(again), tiny.outputs(model))
    files = ("config.json", "compression.json", "model.safetensors")
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)


def test_what_the_directory_holds(saved):
    found = sorted(os.listdir(saved))
    assert found == sorted(
        [
            "config.json",
            "model.safetensors",
            "compression.json",
            "processor_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ]
    )
    content = json.loads((saved / "compression.json").read_text())
    assert (content["format"], content["upop"], content["kinds"]) == (1, upop.__version__, list(KINDS))
    assert content["facts"] == {"source": "tiny"}
    config = json.loads((saved / "config.json").read_text())
    assert (config["architectures"], config["vision_config"]["hidden_size"]) == (["CLIPModel"], 32)
    assert stat.S_IMODE(saved.stat().st_mode) == 0o755
    assert stat.S_IMODE((saved / "model.safetensors").stat().st_mode) == 0o644
    assert os.listdir(saved.parent) == ["out"]


def test_the_processor_works(saved):
    _, processor = load(saved)
    image = Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8))
    batch = processor(text=["w3 w4", "w5"], images=[image, image], return_tensors="pt", padding=True)
    assert batch["input_ids"].tolist() == [[3, 4], [5, 1]]
    assert batch["pixel_values"].shape == (2, 3, 16, 16)


def test_no_processor_is_none(tmp_path):
    model, plan, _ = cut()
    assert load(save(model, None, tmp_path / "out", plan, KINDS))[1] is None


def test_load_is_the_front_door():
    assert upop.load is load


def test_weights_of_another_precision_stay_so(tmp_path):
    model, plan, _ = cut()
    loaded, _ = load(save(model.to(torch.bfloat16), None, tmp_path / "out", plan, KINDS))
    assert {value.dtype for value in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(tiny.outputs(loaded), tiny.outputs(model))


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("name", ["clip", "timm_vit"])
def test_nothing_is_unpickled(tmp_path, monkeypatch, compressed, name):
    model, plan, processor = cut(name)
    path = (
        save(model, processor, tmp_path / "out", plan, KINDS) if compressed else samples.directory(tmp_path / "d", name)
    )

    def refuse(*_, **__):
        raise AssertionError("unpickled")

    for module, attribute in [(pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")]:
        monkeypatch.setattr(module, attribute, refuse)
    load(path)


@pytest.mark.parametrize("plan", [True, False])
def test_tied_weights(tmp_path, plan):
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**tiny.TEXT)).eval()
    sites = find_sites(model, KINDS)
    chosen = random_plan(sites, 1) if plan else Plan.whole(sites)
    shrink_(model, sites, chosen)
    path = save(model, None, tmp_path / "out", chosen, KINDS)
    names = load_file(path / "model.safetensors")
    assert "cls.predictions.decoder.weight" not in names
    loaded, _ = load(path)
    assert type(loaded) is BertForMaskedLM
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize("name", ["blip_vqa", "blip_captioning"])
def test_tied_embeddings_of_a_decoder(tmp_path, name):
    model, plan, processor = cut(name)
    paths = [save(model, processor, tmp_path / place, plan, KINDS) for place in ("one", "two")]
    names = load_file(paths[0] / "model.safetensors")
    head = "text_decoder.cls.predictions"
    assert not {f"{head}.decoder.weight", f"{head}.decoder.bias"} & set(names)
    assert {f"{head}.bias", "text_decoder.bert.embeddings.word_embeddings.weight"} <= set(names)
    assert len({(path / "model.safetensors").read_bytes() for path in paths}) == 1
    decoder = load(paths[0])[0].text_decoder
    assert decoder.get_output_embeddings().weight is decoder.get_input_embeddings().weight
    assert decoder.cls.predictions.decoder.bias is decoder.cls.predictions.bias


class Crash(BaseException):
    """The power goes."""


@pytest.mark.parametrize("where", ["processor", "rename"])
def test_an_interrupted_save_leaves_the_old_directory(saved, monkeypatch, where):
    model, plan, processor = cut(seed=2)
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    rename = os.rename

    def crash(*_, **__):
        raise Crash

    def crash_at_the_last_rename(source, target):
        if target == saved and "-old-" not in str(source):
            raise Crash
        rename(source, target)

    if where == "processor":
        monkeypatch.setattr(processor, "save_pretrained", crash)
    else:
        monkeypatch.setattr(os, "rename", crash_at_the_last_rename)
    with pytest.raises(Crash):
        save(model, processor, saved, plan, KINDS)
    assert os.listdir(saved.parent) == ["out"]
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_an_older_directory_is_replaced_whole(saved):
    (saved / "stale.txt").write_text("old")
    model, plan, processor = cut(seed=2)
    save(model, processor, saved, plan, KINDS)
    assert not (saved / "stale.txt").exists()
    assert os.listdir(saved.parent) == ["out"]
    assert torch.equal(tiny.outputs(load(saved)[0]), tiny.outputs(model))


def test_masks_are_refused(tmp_path):
    model = tiny.build("clip")
    masks = Masks(model, find_sites(model))
    with pytest.raises(
        ValueError, match=r"has masks \(or another parametrisation\) attached; detach them before saving"
    ):
        save(model, None, tmp_path / "out")
    assert os.listdir(tmp_path) == []
    masks.detach()
    save(model, None, tmp_path / "out")


def test_models_that_cannot_be_described_are_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot describe a Linear"):
        save(torch.nn.Linear(2, 2), None, tmp_path / "out")
    assert os.listdir(tmp_path) == []


def tamper(path, change):
    content = json.loads((path / "compression.json").read_text())
    change(content)
    (path / "compression.json").write_text(json.dumps(content))


SITE = "vision_model.encoder.layers.0.mlp.neuron"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda it: it.update(format=2), r"compression\.json' has format 2; this version reads format 1"),
        (lambda it: it.pop("format"), r"compression\.json' has format None; this version reads format 1"),
        (lambda it: it.pop("kinds"), r"compression\.json' lacks \['kinds'\]; is it complete"),
        (lambda it: it.pop("plan"), r"compression\.json' lacks \['plan'\]; is it complete"),
        (lambda it: it["plan"].update(format=7), "plan format 7; this version reads format 1"),
        (lambda it: it["plan"].update(model="0" * 16), "plan was made for another model: its fingerprint is '0000"),
        (lambda it: it.update(kinds=["neuron"]), r"plan names site '.*head.*', but this model has"),
        (lambda it: it.update(kinds=["silly"]), "unknown unit kind 'silly'"),
        (
            lambda it: it["plan"]["keep"].update({SITE: [0, 1, 2]}),
            r"holds vision_model\.encoder\.layers\.0\.mlp\.fc1\.(weight|bias) of shape \(\d+.*\), the plan beside it "
            r"says \(3.*\); do compression\.json and the weights belong together",
        ),
        (lambda it: it["plan"]["keep"].update({SITE: [0, 99]}), f"plan keeps unit 99 at site '{SITE}'"),
    ],
)
def test_tampered_plans_are_refused(saved, change, text):
    tamper(saved, change)
    with pytest.raises(ValueError, match=text):
        load(saved)


def test_compression_that_is_no_json(saved):
    for content, text in [("{", r"compression\.json' is not JSON: "), ("[]", "has format 'list'")]:
        (saved / "compression.json").write_text(content)
        with pytest.raises(ValueError, match=text):
            load(saved)
        with pytest.raises(ValueError, match=text):
            plan_of(saved)


def test_missing_and_broken_files(saved, tmp_path):
    weights = saved / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors' cannot be read as safetensors: .*; copy it again"):
        load(saved)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"no weights at '.*model\.safetensors'; is the directory complete"):
        load(saved)
    with pytest.raises(FileNotFoundError, match="no checkpoint directory at"):
        load(tmp_path / "nowhere")
    weights.write_bytes(whole)
    (saved / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load(saved)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda it: it.pop("logit_scale"),
            r"lacks weights \['logit_scale'\] and has unexpected ones \[\]; is it complete",
        ),
        (
            lambda it: it.update(extra=torch.ones(1)),
            r"lacks weights \[\] and has unexpected ones \['extra'\]; is it comp",
        ),
    ],
)
def test_weights_that_do_not_fit(saved, change, text):
    tensors = load_file(saved / "model.safetensors")
    change(tensors)
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(ValueError, match=text):
        load(saved)


def test_a_tied_weight_that_is_nowhere_is_missed(tmp_path):
    model = BertForMaskedLM(BertConfig(**tiny.TEXT))
    sites = find_sites(model, KINDS)
    path = save(model, None, tmp_path / "out", Plan.whole(sites), KINDS)
    tensors = load_file(path / "model.safetensors")
    embedding = tensors.pop("bert.embeddings.word_embeddings.weight")
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks weights \['bert\.embeddings\.word_embeddings\.weight', 'cls\.pred"):
        load(path)
    # Tying takes the input embedding: a file that holds only the other name would leave it without values.
    save_file(tensors | {"cls.predictions.decoder.weight": embedding}, path / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks weights \['bert\.embeddings\.word_embeddings\.weight'"):
        load(path)
