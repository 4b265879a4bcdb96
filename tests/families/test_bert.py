import pytest
from transformers import BertConfig, BertModel

from tests import tiny
from upop.families import find_sites
from upop.structure import KINDS, Plan
from upop.surgery import shrink_


@pytest.mark.parametrize(("name", "prefix"), [("bert", ""), ("dual_encoder", "text_model.")])
def test_sites_and_what_the_modules_say_after_the_cut(name, prefix):
    model = tiny.build(name)
    sites = find_sites(model, KINDS)
    text = [site for site in sites if site.modality == "text"]
    assert [site.name for site in text] == [
        f"{prefix}encoder.layer.{layer}.{part}"
        for layer in range(3)
        for part in ("attention.self.head", "attention.self.head_dim", "intermediate.neuron")
    ]
    assert [site.units for site in text[:3]] == [3, 8, 40]
    shrink_(model, sites, Plan.of({text[0].name: [0, 2], text[1].name: [1, 4, 5], text[2].name: [39]}, sites))
    block = model.get_submodule(f"{prefix}encoder.layer.0")
    attention = block.attention.self
    assert (attention.num_attention_heads, attention.attention_head_size, attention.all_head_size) == (2, 3, 6)
    assert attention.scaling == 8**-0.5
    assert (attention.key.out_features, block.attention.output.dense.in_features) == (6, 6)
    assert (block.intermediate.dense.out_features, block.output.dense.in_features) == (1, 1)


def test_width_follows_either_site_alone():
    for part, keep, width in [("head", [1], 8), ("head_dim", [0, 1, 2], 9)]:
        model = tiny.build("bert")
        sites = find_sites(model, KINDS)
        shrink_(model, sites, Plan.of({f"encoder.layer.2.attention.self.{part}": keep}, sites))
        assert model.encoder.layer[2].attention.self.all_head_size == width


def test_cross_attention_is_refused():
    model = BertModel(BertConfig(**tiny.TEXT, is_decoder=True, add_cross_attention=True))
    with pytest.raises(
        ValueError,
        match=r"encoder\.layer\.0 has cross-attention, which the BERT .*\(config\.add_cross_attention=False\)",
    ):
        find_sites(model)
