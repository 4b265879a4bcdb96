import copy
import importlib
import json
import os
import pickle
import stat

import numpy as np
import pytest
import timm
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
    assert not (path / "README.md").exists()
    assert not list(path.glob("*.py"))
    assert not {"compression", "auto_map"} & set(json.loads((path / "config.json").read_text()))


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
    files = {"config.json", "model.safetensors", "README.md", *(file.name for file in (tmp_path / "one").glob("*.py"))}
    assert len(files) >= 4
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)


def test_what_the_directory_holds(saved):
    found = sorted(os.listdir(saved))
    assert found == sorted(
        [
            "config.json",
            "model.safetensors",
            "modeling_upop.py",
            "README.md",
            "processor_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ]
    )
    config = json.loads((saved / "config.json").read_text())
    content = config["compression"]
    assert (content["format"], content["upop"], content["kinds"]) == (2, upop.__version__, list(KINDS))
    assert content["facts"] == {"source": "tiny"}
    assert config["auto_map"]["AutoModel"] == "modeling_upop.CLIPModel"
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


@pytest.mark.parametrize("name", ["clip", "blip_retrieval", "blip_nlvr"])
def test_what_a_loaded_model_saves_is_the_same_directory(tmp_path, name):
    model, plan, processor = cut(name)
    first = save(model, processor, tmp_path / "first", plan, KINDS, {"source": "tiny"})
    loaded, _ = load(first)
    copied = copy.deepcopy(loaded)
    loaded.save_pretrained(tmp_path / "again", is_main_process=False)
    assert not (tmp_path / "again").exists()
    loaded.save_pretrained(tmp_path / "again")
    names = sorted(file.name for file in first.iterdir())
    assert {"config.json", "model.safetensors", "README.md", "modeling_upop.py"} <= set(names)
    assert sorted(file.name for file in (tmp_path / "again").iterdir()) == names
    for file in names:
        if file != "tokenizer_config.json":  # transformers notes there whether the tokenizer came from a directory
            assert (tmp_path / "again" / file).read_bytes() == (first / file).read_bytes(), file
    with torch.no_grad():
        next(copied.parameters()).zero_()
    copied.save_pretrained(tmp_path / "copied")
    found = tiny.outputs(load(tmp_path / "copied")[0])
    assert torch.equal(found, tiny.outputs(copied)), "a copy saves its own weights"
    with pytest.raises(TypeError, match=r"takes a directory alone; leave out \['max_shard_size'\]"):
        loaded.save_pretrained(tmp_path / "sharded", max_shard_size="1MB")


def test_models_that_cannot_be_described_are_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot describe a Linear"):
        save(torch.nn.Linear(2, 2), None, tmp_path / "out")
    assert os.listdir(tmp_path) == []


def tamper(path, change):
    content = json.loads((path / "config.json").read_text())
    change(content["compression"])
    (path / "config.json").write_text(json.dumps(content))


SITE = "vision_model.encoder.layers.0.mlp.neuron"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda it: it.update(format=7), r"config\.json' has compression format 7; this version reads format 2"),
        (lambda it: it.pop("keep"), r"compression in '.*config\.json' lacks \['keep'\]; is it complete"),
        (lambda it: it.update(model="0" * 16), "plan was made for another model: its fingerprint is '0000"),
        (lambda it: it.update(kinds=["neuron"]), r"plan names site '.*head.*', but this model has"),
        (lambda it: it.update(kinds=["silly"]), "unknown unit kind 'silly'"),
        (
            lambda it: it["keep"].update({SITE: "0-2"}),
            r"holds vision_model\.encoder\.layers\.0\.mlp\.fc1\.(weight|bias) of shape \(\d+.*\), the plan beside it "
            r"says \(3.*\); do the plan and the weights belong together",
        ),
        (lambda it: it["keep"].update({SITE: "0,99"}), f"plan keeps unit 99 at site '{SITE}'"),
        (lambda it: it["keep"].update({SITE: "0-"}), f"units kept at site '{SITE}' in .*: '0-' is no list of numbers"),
    ],
)
def test_tampered_plans_are_refused(saved, change, text):
    tamper(saved, change)
    with pytest.raises(ValueError, match=text):
        load(saved)


@MODELS
def test_directories_of_older_versions(tmp_path, name):
    model, plan, processor = cut(name)
    path = older(save(model, processor, tmp_path / "out", plan, KINDS), plan)
    assert plan_of(path) == (plan, list(KINDS))
    loaded, _ = load(path)
    assert torch.equal(tiny.outputs(loaded), tiny.outputs(model))


def older(path, plan):
    """The directory as an older version wrote it."""
    config = json.loads((path / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("compression", "auto_map", "pretrained_cfg")}
    (path / "config.json").write_text(json.dumps(config))
    content = {"format": 1, "upop": "0.1.0", "kinds": list(KINDS), "facts": {}, "plan": plan.to_dict()}
    (path / "compression.json").write_text(json.dumps(content))
    for file in [*path.glob("*.py"), path / "README.md"]:
        file.unlink()
    return path


def test_several_files_of_weights(tmp_path):
    model, plan, processor = cut()
    path = save(model, processor, tmp_path / "out", plan, KINDS)
    tensors = load_file(path / "model.safetensors")
    parts = {f"model-0000{number}-of-00002.safetensors": list(tensors)[number - 1 :: 2] for number in (1, 2)}
    for file, names in parts.items():
        save_file({name: tensors[name] for name in names}, path / file)
    index = {"weight_map": {name: file for file, names in parts.items() for name in names}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "model.safetensors").unlink()
    assert torch.equal(tiny.outputs(load(path)[0]), tiny.outputs(model))
    (path / "model-00002-of-00002.safetensors").unlink()
    text = r"index\.json' names 2 files of weights, of which 'model-00002-of-00002\.safetensors' is missing; copy it"
    with pytest.raises(FileNotFoundError, match=text):
        load(path)


def test_a_plan_of_another_model_is_refused(tmp_path):
    model, _, _ = cut()
    other = Plan.whole(find_sites(tiny.build("siglip"), KINDS))
    with pytest.raises(ValueError, match="plan names site .*, but this model has"):
        save(model, None, tmp_path / "out", other, KINDS)
    assert os.listdir(tmp_path) == []


def test_a_timm_directory_says_how_images_are_prepared(tmp_path):
    model, plan, _ = cut("timm_vit")
    model.pretrained_cfg = dict(model.pretrained_cfg) | {"mean": (0.25, 0.5, 0.75), "crop_pct": 0.8, "url": "nowhere"}
    path = save(model, None, tmp_path / "out", plan, KINDS)
    said = json.loads((path / "config.json").read_text())["pretrained_cfg"]
    assert (said["mean"], said["crop_pct"], said["input_size"]) == ([0.25, 0.5, 0.75], 0.8, [3, 32, 32])
    assert (said["num_classes"], "url" in said) == (5, False)
    assert load(path)[0].pretrained_cfg["mean"] == [0.25, 0.5, 0.75]


def test_a_dense_timm_directory_is_one_of_timms(tmp_path):
    path = samples.directory(tmp_path / "dense", "timm_vit")
    model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    assert torch.equal(tiny.outputs(model), tiny.outputs(samples.model("timm_vit")))


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
