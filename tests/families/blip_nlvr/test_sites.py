import torch

from tests.families.blip_nlvr import samples
from upop.cost import measure
from upop.families import example_inputs, find_blocks, find_sites
from upop.structure import KINDS, Plan
from upop.surgery import shrink_


def test_sites_and_their_order():
    sites = find_sites(samples.model(), KINDS)
    vision = [
        f"visual_encoder.blocks.{block}.{part}"
        for block in range(2)
        for part in ("attn.head", "attn.head_dim", "mlp.neuron")
    ]
    text = [
        f"text_encoder.encoder.layer.{layer}.{part}"
        for layer in range(4)
        for part in (
            *("attention.self.head", "attention.self.head_dim"),
            *(f"crossattention.self{twin}.{kind}" for twin in (0, 1) for kind in ("head", "head_dim")),
            "intermediate.neuron",
        )
    ]
    assert [site.name for site in sites] == [*vision, *text]
    modalities = {site.name: site.modality for site in sites}
    assert {modalities[name] for name in vision} == {"vision"}
    assert {modalities[name] for name in text if "crossattention" in name} == {"fusion"}
    assert {modalities[name] for name in text if "crossattention" not in name} == {"text"}
    assert [site.units for site in sites[:3]] == [4, 8, 48]
    assert [site.units for site in sites[6:13]] == [3, 8, 3, 8, 3, 8, 40]
    assert [site.depth for site in sites if site.name.endswith("self1.head")] == [0, 1, 2, 3]
    assert not any(site.fold for site in sites), "the scale is stored"
    assert len(find_blocks(samples.model())) == 6


def test_each_image_has_its_own_output_layer():
    sites = {site.name: site for site in find_sites(samples.model(), ("head",))}
    for twin in (0, 1):
        name = f"text_encoder.encoder.layer.0.crossattention.self{twin}"
        cuts = sites[f"{name}.head"].cuts
        path = "text_encoder.encoder.layer.0.crossattention"
        assert [(cut.layer.name, cut.side, cut.layer.tokens) for cut in cuts] == [
            (f"{name}.query", "out", "text"),
            (f"{name}.key", "out", "image"),
            (f"{name}.value", "out", "image"),
            (f"{path}.output.dense{twin}", "in", "text"),
        ]
        attention = sites[f"{name}.head"].attention
        assert (attention.queries, attention.keys) == ("text", "image")


def test_two_images_are_two_sequences():
    model = samples.model()
    sites = find_sites(model, KINDS)
    found = measure(model, sites, example_inputs(model, text_length=7))
    assert found.tokens == {"vision": 2 * 5, "image": 5, "text": 7}
    assert found.sequences == {"vision": 2}


def test_what_the_modules_say_after_the_cut():
    model = samples.model()
    sites = find_sites(model, KINDS)
    layer = "text_encoder.encoder.layer.3"
    keep = {
        "visual_encoder.blocks.1.attn.head": [0, 2, 3],
        "visual_encoder.blocks.1.attn.head_dim": [7],
        f"{layer}.attention.self.head_dim": [1, 2],
        f"{layer}.crossattention.self0.head": [2],
        f"{layer}.crossattention.self1.head_dim": [0, 1, 2, 3, 4],
        f"{layer}.intermediate.neuron": [5, 39],
    }
    shrink_(model, sites, Plan.of(keep, sites))
    vision, text = model.visual_encoder.blocks[1].attn, model.get_submodule(layer)
    assert (vision.num_heads, vision.head_dim, vision.scale) == (3, 1, 8**-0.5)
    assert (vision.qkv.out_features, vision.proj.in_features) == (9, 3)
    attention, first, second = text.attention.self, text.crossattention.self0, text.crossattention.self1
    assert [(it.num_heads, it.head_dim) for it in (attention, first, second)] == [(3, 2), (1, 8), (3, 5)]
    assert {it.scale for it in (attention, first, second)} == {8**-0.5}
    output = text.crossattention.output
    assert (output.dense0.in_features, output.dense1.in_features) == (8, 15)
    assert (output.dense0.out_features, output.merge_layer.in_features) == (24, 48)
    assert (text.intermediate.dense.out_features, text.output.dense.in_features) == (2, 2)
    with torch.no_grad():
        assert torch.isfinite(model(**samples.inputs()).logits).all()
