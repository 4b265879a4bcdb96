"""Places in a model, read from the paths of its blocks."""

import pytest

from tests import tiny
from upop.families import find_sites
from upop.report.paths import role, stack


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("bert.encoder.layer.3.crossattention.self", ("bert", "crossattention.self")),
        ("blocks.11.mlp", ("blocks", "mlp")),
        ("layers.0", ("layers", "")),
        ("3.attn", ("3", "attn")),
        ("mlp", ("mlp", "mlp")),
        ("layer4.2.1.attn", ("layer4", "attn")),  # a number within a name is no layer
    ],
)
def test_stack_and_role(block, expected):
    assert (stack(block), role(block)) == expected


def test_every_block_of_a_blip_is_told_from_the_others_of_its_layer():
    sites = find_sites(tiny.build("blip_vqa"))
    places = [(site.modality, stack(site.block), site.depth, role(site.block), site.kind) for site in sites]
    assert len(set(places)) == len(sites)
    assert {role(site.block) for site in sites if site.modality == "fusion"} == {"crossattention.self"}
