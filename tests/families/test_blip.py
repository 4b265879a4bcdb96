import numpy as np
import pytest
import torch
from transformers import BlipConfig, BlipForImageTextRetrieval

from tests import tiny
from tests.plans import random_plan
from upop.cost import CostModel, measure
from upop.families import example_inputs, find_sites
from upop.families.blip_attention import swap_attention_
from upop.masks import Masks, mask_values
from upop.structure import KINDS, Plan
from upop.surgery import shrink_

TOWERS = {
    "blip_retrieval": ["text_encoder"],
    "blip_vqa": ["text_encoder", "text_decoder.bert"],
    "blip_captioning": ["text_decoder.bert"],
}
MODELS = pytest.mark.parametrize("name", TOWERS)
PARTS = ("attention.self.head", "attention.self.head_dim", "crossattention.self.head", "crossattention.self.head_dim")


@MODELS
def test_sites(name):
    sites = find_sites(tiny.build(name), KINDS)
    vision = [
        f"vision_model.encoder.layers.{layer}.{part}"
        for layer in range(2)
        for part in ("self_attn.head", "self_attn.head_dim", "mlp.neuron")
    ]
    text = [
        f"{tower}.encoder.layer.{layer}.{part}"
        for tower in TOWERS[name]
        for layer in range(3)
        for part in (*PARTS, "intermediate.neuron")
    ]
    assert [site.name for site in sites] == vision + text
    for site in sites:
        expected = "vision" if site.name in vision else "fusion" if "crossattention" in site.name else "text"
        assert site.modality == expected
        assert site.depth == int(site.name.split(".layer")[1].split(".")[1])
        assert (site.fold is not None) == (site.kind == "head_dim" and site.modality != "vision")
    assert [site.units for site in sites if site.modality == "fusion"][:2] == [3, 8]


def test_cross_attention_has_queries_of_the_text_and_keys_and_values_of_the_image():
    sites = find_sites(tiny.build("blip_retrieval"), ("head",))
    site = next(site for site in sites if site.modality == "fusion")
    found = [(cut.layer.name.rpartition("crossattention.")[2], cut.layer.in_features) for cut in site.cuts]
    assert found == [("self.query", 24), ("self.key", 32), ("self.value", 32), ("output.dense", 24)]
    text, image = "text_encoder", "text_encoder.crossattention"
    assert [cut.layer.tokens for cut in site.cuts] == [text, image, image, text]
    assert (site.attention.queries, site.attention.keys) == (text, image)


def test_cut_cross_attention_is_the_textbook_one_with_the_scale_of_the_dense_model():
    model = tiny.build("blip_retrieval").double()
    path = "text_encoder.encoder.layer.1.crossattention"
    attention = model.get_submodule(f"{path}.self")
    layers = [attention.get_submodule(name) for name in ("query", "key", "value")]
    weights = [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in layers]
    generator = torch.Generator().manual_seed(0)
    text, image = (
        torch.randn(count, width, dtype=torch.float64, generator=generator) for count, width in [(4, 24), (5, 32)]
    )

    def by_hand(heads, positions):
        mixed = []
        for head in heads:
            rows = [8 * head + position for position in positions]
            q, k, v = (
                x.numpy() @ weight[rows].T + bias[rows]
                for x, (weight, bias) in zip((text, image, image), weights, strict=True)
            )
            soft = np.exp(q @ k.T / np.sqrt(8))
            mixed.append(soft / soft.sum(1, keepdims=True) @ v)
        return np.concatenate(mixed, axis=1)

    def attend():
        with torch.no_grad():
            return attention(text[None], encoder_hidden_states=image[None])[0][0].numpy()

    np.testing.assert_allclose(attend(), by_hand(range(3), range(8)), atol=1e-10)
    sites = find_sites(model, ("head", "head_dim"))
    shrink_(model, sites, Plan.of({f"{path}.self.head": [0, 2], f"{path}.self.head_dim": [1, 4, 5]}, sites))
    np.testing.assert_allclose(attend(), by_hand([0, 2], [1, 4, 5]), atol=1e-10)


def test_what_the_modules_say_after_the_cut():
    model = tiny.build("blip_retrieval")
    sites = find_sites(model, KINDS)
    vision, text = "vision_model.encoder.layers.1", "text_encoder.encoder.layer.2"
    keep = {
        f"{vision}.self_attn.head": [0, 3],
        f"{vision}.self_attn.head_dim": [1, 2, 7],
        f"{vision}.mlp.neuron": [5],
        f"{text}.crossattention.self.head": [1],
        f"{text}.crossattention.self.head_dim": [0, 7],
        f"{text}.intermediate.neuron": [1, 2],
    }
    shrink_(model, sites, Plan.of(keep, sites))
    block = model.get_submodule(vision)
    assert (block.self_attn.num_heads, block.self_attn.head_dim, block.self_attn.scale) == (2, 3, 8**-0.5)
    assert (block.self_attn.qkv.out_features, block.self_attn.projection.in_features) == (18, 6)
    assert (block.mlp.fc1.out_features, block.mlp.fc2.in_features) == (1, 1)
    layer = model.get_submodule(text)
    cross, own = layer.crossattention.self, layer.attention.self
    assert (cross.num_attention_heads, cross.attention_head_size, cross.all_head_size) == (1, 2, 2)
    assert (cross.query.weight.shape, cross.key.weight.shape, cross.value.weight.shape) == ((2, 24), (2, 32), (2, 32))
    assert layer.crossattention.output.dense.weight.shape == (24, 2)
    assert not hasattr(cross, "scale")  # it has none, so none is left behind
    assert (own.num_attention_heads, own.attention_head_size, own.all_head_size) == (3, 8, 24)
    assert (layer.intermediate.dense.out_features, layer.output.dense.in_features) == (2, 2)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", ["blip_vqa", "blip_captioning"])
def test_generation_gives_the_same_tokens_masked_and_cut(name, beams, seed):
    def generate():
        found = model.generate(
            **{key: value.clone() for key, value in inputs.items()}, num_beams=beams, max_new_tokens=6, do_sample=False
        )
        assert found.shape[0] == 3
        return found

    for drawn in range(20 * seed, 20 * seed + 20):  # until one says other things about other images, and without units
        model = tiny.build(name, drawn)
        inputs = {key: value for key, value in tiny.inputs(model, seed=drawn).items() if not key.startswith("decoder")}
        inputs["input_ids"] = inputs["input_ids"][:, :5]
        dense = generate()
        sites = find_sites(model, KINDS)
        plan = random_plan(sites, seed)
        masks = Masks(model, sites)
        masks.write_(mask_values(sites, plan))
        masked = generate()
        masks.detach()
        if len(dense.unique(dim=0)) > 1 and masked.tolist() != dense.tolist():
            break
    shrink_(model, sites, plan)
    assert masked.tolist() == generate().tolist()
    assert len(dense.unique(dim=0)) > 1
    assert masked.tolist() != dense.tolist()


def test_tokens_of_each_stream():
    text = {"text_encoder": 12, "text_encoder.crossattention": 5}
    decoder = {"text_decoder.bert": 12, "text_decoder.bert.crossattention": 5}
    answer = {"text_decoder.bert": 4, "text_decoder.bert.crossattention": 12}  # the decoder looks at the question
    for name, expected in [("retrieval", text), ("vqa", text | answer), ("captioning", decoder)]:
        model = tiny.build(f"blip_{name}")
        assert measure(model, find_sites(model), example_inputs(model)).tokens == {"vision": 5} | expected


def test_vit_l_on_the_meta_device():
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    config = BlipConfig(vision_config=vision, text_config={"num_attention_heads": 12})
    with torch.device("meta"):
        model = BlipForImageTextRetrieval(config)
    swap_attention_(model)
    sites = find_sites(model, KINDS)
    count = {name: sum(site.modality == name for site in sites) for name in ("vision", "text", "fusion")}
    assert count == {"vision": 24 * 3, "text": 12 * 3, "fusion": 12 * 2}
    assert {site.units for site in sites if site.modality == "vision"} == {16, 64, 4096}
    cost = CostModel(sites, measure(model, sites, example_inputs(model, 35)))
    assert cost.measured.tokens == {"vision": 577, "text_encoder": 35, "text_encoder.crossattention": 577}
    # Rows of a unit with their biases and its columns; the bias after the columns belongs to nobody.
    attention, mlp = 3 * 1024 * 1025 + 1024 * 1024, 4096 * 1025 + 4096 * 1024
    assert cost.prunable("params", "vision") == 24 * (attention + mlp)
    assert cost.prunable("params", "fusion") == 12 * (768 * 769 + 2 * 768 * 1025 + 768 * 768)
    weights, products = 2 * (35 * 2 * 768 * 768 + 577 * 2 * 768 * 1024), 4 * 35 * 577 * 768
    assert cost.prunable("flops", "fusion") == 12 * (weights + products)
    plan = random_plan(sites, 0)
    shrink_(model, sites, plan)
    left = measure(model, [], example_inputs(model, 35))
    assert (cost.remaining(plan.kept(), "params"), cost.remaining(plan.kept(), "flops")) == (left.params, left.flops)


def test_an_attention_of_hugging_face_is_refused_by_name():
    model = BlipForImageTextRetrieval(tiny.blip_config())
    text = (
        r"vision_model\.encoder\.layers\.0\.self_attn is a BlipAttention of transformers, which cannot be cut; load "
        r"the model with upop, or call upop\.families\.blip_attention\.swap_attention_ on it"
    )
    with pytest.raises(ValueError, match=text):
        find_sites(model)
