import pytest

from tests import tiny
from upop.families import find_sites
from upop.structure import KINDS, Plan
from upop.surgery import shrink_


@pytest.mark.parametrize(("name", "prefix"), [("vit", ""), ("deit", ""), ("dual_encoder", "vision_model.")])
def test_sites_and_what_the_modules_say_after_the_cut(name, prefix):
    model = tiny.build(name)
    sites = find_sites(model, KINDS)
    vision = [site for site in sites if site.modality == "vision"]
    assert [site.name for site in vision] == [
        f"{prefix}layers.{layer}.{part}"
        for layer in range(2)
        for part in ("attention.head", "attention.head_dim", "mlp.neuron")
    ]
    assert [site.units for site in vision[:3]] == [4, 8, 48]
    assert all(site.fold is None for site in vision)
    shrink_(model, sites, Plan.of({vision[0].name: [2], vision[1].name: [0, 7], vision[2].name: [1, 2, 3]}, sites))
    block = model.get_submodule(f"{prefix}layers.0")
    assert (block.attention.num_attention_heads, block.attention.head_dim, block.attention.scaling) == (1, 2, 8**-0.5)
    assert (block.attention.q_proj.out_features, block.attention.o_proj.in_features) == (2, 2)
    assert (block.mlp.fc1.out_features, block.mlp.fc2.in_features) == (3, 3)
