import pytest
import timm
from timm.layers import Attention, Mlp, SwiGLU
from timm.models.beit import Beit
from timm.models.vision_transformer_sam import VisionTransformerSAM

from tests import tiny
from upop.families import find_sites
from upop.structure import KINDS, Plan
from upop.surgery import shrink_

SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}


def vit(**arguments):
    return timm.models.VisionTransformer(**SMALL, **arguments).eval()


def test_sites_and_what_the_modules_say_after_the_cut():
    model = tiny.build("timm_vit")
    sites = find_sites(model, KINDS)
    parts = ("attn.head", "attn.head_dim", "mlp.neuron")
    assert [site.name for site in sites] == [f"blocks.{layer}.{part}" for layer in range(2) for part in parts]
    assert {site.modality for site in sites} == {"vision"}
    keep = {"blocks.1.attn.head": [3, 2, 0][::-1], "blocks.1.attn.head_dim": [0, 5], "blocks.1.mlp.neuron": [1, 3]}
    shrink_(model, sites, Plan.of(keep, sites))
    attention, mlp = model.blocks[1].attn, model.blocks[1].mlp
    assert (attention.num_heads, attention.head_dim, attention.attn_dim, attention.scale) == (3, 2, 6, 2**-0.5)
    assert (attention.qkv.out_features, attention.proj.in_features) == (18, 6)
    assert (mlp.fc1.out_features, mlp.fc2.in_features) == (2, 2)
    assert (model.blocks[0].attn.attn_dim, model.blocks[0].attn.scale) == (32, 8**-0.5)


def test_qk_norm_refuses_head_dims_but_allows_heads():
    model = vit(qk_norm=True)
    text = (
        r"blocks\.0\.attn\.q_norm normalises over the head size, so removing \['head_dim'\] there would change what is"
    )
    with pytest.raises(ValueError, match=text):
        find_sites(model)
    sites = find_sites(model, ("head", "neuron"))
    assert [site.kind for site in sites] == ["head", "neuron"] * 2
    shrink_(model, sites, Plan.of({"blocks.0.attn.head": [1, 2]}, sites))
    assert tiny.outputs(model).shape == (15,)


def test_scale_norms_refuse_what_they_normalise_over():
    model = vit(scale_attn_norm=True)
    for kind in ("head", "head_dim"):
        with pytest.raises(
            ValueError, match=rf"blocks\.0\.attn\.norm normalises over the heads, so removing \['{kind}'\]"
        ):
            find_sites(model, (kind,))
    assert len(find_sites(model, ("neuron",))) == 2
    model = vit(scale_mlp_norm=True)
    with pytest.raises(ValueError, match=r"blocks\.0\.mlp\.norm normalises over the neurons, so removing \['neuron'\]"):
        find_sites(model)
    assert len(find_sites(model, ("head",))) == 2


def test_gates_are_refused():
    model = vit()
    model.blocks[1].attn = Attention(32, num_heads=4, gated=True)
    text = r"blocks\.1\.attn is gated, which cannot be cut; supported: timm's Attention without a gate"
    with pytest.raises(ValueError, match=text):
        find_sites(model)


def test_other_mlps_are_refused():
    text = r"blocks\.0\.mlp is a timm\.layers\.mlp\.SwiGLU, which cannot be cut; supported: timm\.layers\.Mlp"
    with pytest.raises(ValueError, match=text):
        find_sites(vit(mlp_layer=SwiGLU))
    model = vit()
    model.blocks[0].mlp = Mlp(32, 48, use_conv=True)
    with pytest.raises(TypeError, match=r"blocks\.0\.mlp\.fc1 is a Conv2d, which cannot be cut"):
        find_sites(model)


def test_blocks_of_the_same_name_in_other_architectures_are_refused():
    small = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 4}
    with pytest.raises(ValueError, match=r"blocks\.0\.attn is a timm\.models\.beit\.Attention, which cannot be cut"):
        find_sites(Beit(**small))
    with pytest.raises(
        ValueError, match=r"blocks\.0\.attn is a timm\.models\.vision_transformer_sam\.Attention, which"
    ):
        find_sites(VisionTransformerSAM(**small, use_rel_pos=True))
    with pytest.raises(
        ValueError, match=r"\.attn is a builtins\.NoneType, which cannot be cut; supported: timm\.layers"
    ):
        find_sites(timm.create_model("fasternet_t0"))
