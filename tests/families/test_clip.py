import pytest

from tests import tiny
from upop.families import find_sites
from upop.structure import KINDS, Plan
from upop.surgery import shrink_

VISION = "vision_model.encoder.layers.1"


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_sites_and_what_the_modules_say_after_the_cut(name):
    model = tiny.build(name)
    sites = find_sites(model, KINDS)
    names = [site.name for site in sites]
    expected = [
        f"{tower}_model.encoder.layers.{layer}.{part}"
        for tower, layers in (("text", 3), ("vision", 2))
        for layer in range(layers)
        for part in ("self_attn.head", "self_attn.head_dim", "mlp.neuron")
    ]
    assert [name for name in names if name != "vision_model.head.mlp.neuron"] == expected
    assert [site.modality for site in sites[:9]] == ["text"] * 9
    assert {site.modality for site in sites[9:]} == {"vision"}
    assert {site.units for site in sites if site.modality == "text"} == {3, 8, 40}
    assert all(site.fold is None for site in sites)

    keep = {f"{VISION}.self_attn.head": [0, 3], f"{VISION}.self_attn.head_dim": [1, 2, 7], f"{VISION}.mlp.neuron": [5]}
    shrink_(model, sites, Plan.of(keep, sites))
    block = model.get_submodule(VISION)
    assert (block.self_attn.num_heads, block.self_attn.head_dim, block.self_attn.scale) == (2, 3, 8**-0.5)
    assert (block.self_attn.q_proj.out_features, block.self_attn.out_proj.in_features) == (6, 6)
    assert (block.mlp.fc1.out_features, block.mlp.fc2.in_features) == (1, 1)
    whole = model.vision_model.encoder.layers[0].self_attn
    assert (whole.num_heads, whole.head_dim, whole.q_proj.out_features) == (4, 8, 32)


def test_siglips_pooling_head_has_neurons_of_its_own_stream():
    sites = find_sites(tiny.build("siglip"), KINDS)
    (head,) = [site for site in sites if site.name.startswith("vision_model.head")]
    assert (head.kind, head.modality, head.depth, head.units) == ("neuron", "vision", 2, 48)
    assert {cut.layer.tokens for cut in head.cuts} == {"probe"}
