"""What holds for every family: a new one without a tiny model fails here."""

import re

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
)

from tests import tiny
from tests.plans import random_plan
from upop.families import families, find_blocks, find_sites
from upop.structure import KINDS, MODALITIES
from upop.surgery import shrink_

MODELS = pytest.mark.parametrize("name", tiny.MODELS)
SUPPORTED = "supported: BERT; BLIP; BLIP for visual reasoning; CLIP, SigLIP; timm ViT; ViT, DeiT"


def blocks(model):
    return {(type(module).__module__.partition(".")[0], type(module).__name__) for module in model.modules()}


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_every_block_of_every_family_has_a_tiny_model(family):
    found = set().union(*(blocks(tiny.build(name)) for name in tiny.MODELS))
    missing = [name for name in family.blocks if (family.library, name) not in found]
    assert not missing, f"add a model with {missing} to tests/tiny.py"


def test_families_are_those_of_the_folder():
    assert [family.name for family in families()] == [
        "BERT",
        "BLIP",
        "BLIP for visual reasoning",
        "CLIP, SigLIP",
        "timm ViT",
        "ViT, DeiT",
    ]


@MODELS
def test_sites_are_consistent(name):
    model = tiny.build(name)
    sites = find_sites(model, KINDS)
    assert len({site.name for site in sites}) == len(sites)
    for site in sites:
        assert site.name == f"{site.block}.{site.kind}"
        assert site.modality in MODALITIES
        assert {cut.side for cut in site.cuts} == {"out", "in"}
        assert {cut.units for cut in site.cuts} == {site.units}
        model.get_submodule(site.block)
        for cut in site.cuts:
            layer = model.get_submodule(cut.layer.name)
            assert isinstance(layer, nn.Linear)
            assert (layer.in_features, layer.out_features) == (cut.layer.in_features, cut.layer.out_features)
            assert (layer.bias is not None) == cut.layer.bias
            features = layer.out_features if cut.side == "out" else layer.in_features
            assert sorted(cut.positions().flatten().tolist()) == list(range(features))
        for size in site.sizes:
            expected = site.units if size.layer is None else layer_width(model, size)
            assert getattr(model.get_submodule(size.module), size.attribute) == expected


def layer_width(model, size):
    return model.get_submodule(size.layer).out_features // size.parts


@MODELS
def test_depths_count_from_zero_in_each_tower(name):
    sites = find_sites(tiny.build(name), ("neuron",))
    for tower in {tower_of(site) for site in sites}:
        depths = [site.depth for site in sites if tower_of(site) == tower]
        assert depths == list(range(len(depths)))


def tower_of(site):
    return site.name.partition(".")[0]


@MODELS
def test_blocks_are_the_layers_with_sites_before_and_after_the_cut(name):
    model = tiny.build(name)
    sites = find_sites(model, KINDS)
    layers = [re.match(r".*?\.\d+(?=\.)", site.name) for site in sites]
    expected = list(dict.fromkeys(layer[0] for layer in layers if layer))
    assert find_blocks(model) == expected
    shrink_(model, sites, random_plan(sites, 0))
    assert find_blocks(model) == expected


@MODELS
def test_blocks_put_out_hidden_states(name):
    model = tiny.build(name)
    seen = {}
    for path in find_blocks(model):
        model.get_submodule(path).register_forward_hook(lambda *given, path=path: seen.setdefault(path, given[-1]))
    tiny.outputs(model)
    assert set(seen) == set(find_blocks(model))
    states = [output[0] if isinstance(output, tuple) else output for output in seen.values()]
    assert {state.dim() for state in states} == {3}
    assert {state.shape[-1] for state in states} <= {24, 32}


def test_the_pooling_head_is_no_block():
    assert find_blocks(tiny.build("siglip")) == find_blocks(tiny.build("clip"))


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ValueError, match=rf"nothing to cut in this Linear: looked at Linear; {SUPPORTED}"):
        find_blocks(nn.Linear(2, 2))


@MODELS
def test_kinds_are_a_choice(name):
    model = tiny.build(name)
    every = find_sites(model, KINDS)
    for kind in KINDS:
        assert find_sites(model, (kind,)) == [site for site in every if site.kind == kind]
    assert find_sites(model) == [site for site in every if site.kind != "head"]
    assert find_sites(model, ["neuron", "neuron"]) == find_sites(model, iter(["neuron"]))


@MODELS
def test_listing_changes_nothing(name):
    model = tiny.build(name)
    keys, dense = list(model.state_dict()), tiny.outputs(model)
    assert find_sites(model, KINDS) == find_sites(model, KINDS)
    assert list(model.state_dict()) == keys
    assert torch.equal(tiny.outputs(model), dense)


def test_kind_messages():
    model = tiny.build("clip")
    with pytest.raises(
        ValueError,
        match=r"unknown unit kind 'neurons'; known: \['head', 'head_dim', 'neuron'\]; did you mean 'neuron'\?",
    ):
        find_sites(model, ["head", "neurons"])
    with pytest.raises(ValueError, match=r"no unit kind given; choose from \['head', 'head_dim', 'neuron'\]"):
        find_sites(model, [])


def test_unsupported_models_are_refused_by_name():
    model = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic"))
    with pytest.raises(
        ValueError, match=rf"nothing to cut in this ResNetModel: looked at .*ResNetStage.*; {SUPPORTED}"
    ):
        find_sites(model)
    with pytest.raises(ValueError, match=rf"nothing to cut in this Linear: looked at Linear; {SUPPORTED}"):
        find_sites(nn.Linear(2, 2))


@pytest.mark.parametrize("tower", ["vision_model", "text_model"])
def test_a_dual_encoder_with_one_unsupported_tower_is_refused(tower):
    swin = SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1], num_heads=[2], window_size=4)
    vision = swin if tower == "vision_model" else ViTConfig(**tiny.VISION)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, BertConfig(**tiny.TEXT), projection_dim=8)
    model = VisionTextDualEncoderModel(config)
    text = r"nothing to cut in vision_model SwinModel: looked at .*SwinLayer.*; supported: BERT; "
    if tower == "text_model":
        model.text_model = nn.Sequential(nn.Embedding(5, 5), nn.Linear(5, 5))
        text = "nothing to cut in text_model Sequential: looked at Sequential; supported: BERT; "
    with pytest.raises(ValueError, match=text):
        find_sites(model)


@pytest.mark.parametrize(
    ("name", "tower"), [("blip_vqa", "text_decoder"), ("blip_vqa", "text_encoder"), ("blip_nlvr", "visual_encoder")]
)
def test_a_blip_with_one_unsupported_tower_is_refused(name, tower):
    model = tiny.build(name)
    setattr(model, tower, nn.Sequential(nn.Embedding(5, 5)))
    text = f"nothing to cut in {tower} Sequential: looked at Sequential; supported: BERT; BLIP; "
    for find in (find_sites, find_blocks):
        with pytest.raises(ValueError, match=text):
            find(model)


def test_a_tower_alone_is_supported():
    sites = find_sites(CLIPVisionModelWithProjection(CLIPVisionConfig(**tiny.VISION)))
    assert {site.modality for site in sites} == {"vision"}
    assert len(sites) == 4


class LoraLinear(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base


@MODELS
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_of_another_class_is_refused_by_name(name, kind):
    model = tiny.build(name)
    layer = find_sites(model, (kind,))[-1].cuts[-1].layer.name
    path, _, last = layer.rpartition(".")
    setattr(model.get_submodule(path), last, LoraLinear(model.get_submodule(layer)))
    with pytest.raises(
        TypeError,
        match=rf"{layer} is a LoraLinear, which cannot be cut; a plain .* \(merge adapters and dequantise first\)",
    ):
        find_sites(model, (kind,))


@pytest.mark.parametrize("act", ["sigmoid", "gelu"])
def test_an_activation_that_is_not_0_at_0_is_refused(act):
    vision = tiny.VISION | {"hidden_act": act}
    model = CLIPModel(CLIPConfig(text_config=tiny.TEXT | tiny.IDS, vision_config=vision, projection_dim=16))
    assert find_sites(model, ("head", "head_dim"))
    if act == "gelu":
        assert find_sites(model, KINDS)
        return
    text = (
        r"the activation between vision_model\.encoder\.layers\.0\.mlp\.fc1 and .*\.fc2 is not 0 at 0, so a removed "
        "neuron would leave a constant behind; leave 'neuron' out of the units"
    )
    with pytest.raises(ValueError, match=text):
        find_sites(model, KINDS)
