import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from transformers import CLIPModel

from tests.families import open_clip_samples as samples
from tests.families.test_salesforce import authors_names
from upop.families import image_features, text_features
from upop.families.openai_clip import is_openai_clip, leftovers, openai_name, to_hugging_face, to_openai

MORE = (
    "visual_m.conv1.weight",
    "visual_m.transformer.resblocks.0.attn.in_proj_weight",
    "transformer_m.resblocks.1.ln_1.bias",
    "token_embedding_m.weight",
    "ln_final_m.weight",
    "text_projection_m",
    "positional_embedding_m",
    "image_queue",
    "text_queue",
    "idx_queue",
    "ptr_queue",
    "visual.transformer.resblocks.0.attn.alpha",
    "visual.transformer.resblocks.0.alpha",
    "transformer.resblocks.2.attn.alpha",
    "transformer.resblocks.2.alpha",
    "input_resolution",
    "context_length",
    "vocab_size",
    "attn_mask",
)
"""What UPop's authors, TorchScript and old versions of open_clip keep beside the weights."""


def ours(**changes):
    torch.manual_seed(1)
    return CLIPModel(samples.config(**changes)).eval()


@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize("build", [samples.theirs, samples.custom])
def test_features_are_those_of_open_clip(build, quick_gelu):
    theirs, model = build(quick_gelu=quick_gelu), ours(quick_gelu=quick_gelu)
    model.load_state_dict(to_hugging_face(theirs.state_dict()))
    images, ids = samples.inputs()
    with torch.no_grad():
        for found, expected in (
            (image_features(model, images), theirs.encode_image(images)),
            (text_features(model, ids), theirs.encode_text(ids)),
        ):
            assert expected.std() > 0.1
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert torch.equal(model.logit_scale, theirs.logit_scale)


def test_names_and_shapes_are_those_of_open_clip():
    expected = samples.theirs().state_dict()
    found = to_openai(ours().state_dict())
    assert {name: tensor.shape for name, tensor in found.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }


def test_there_and_back():
    state = samples.theirs().state_dict()
    back = to_openai(to_hugging_face(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    mine = ours().state_dict()
    again = to_hugging_face(to_openai(mine))
    assert again.keys() == mine.keys()
    assert all(torch.equal(again[name], mine[name]) for name in mine)


@pytest.mark.parametrize("before", ["module.", "module.text.", "text."])
def test_names_with_something_before_them(before):
    state = samples.theirs().state_dict()
    wrapped = {
        f"{before if not name.startswith('visual.') else before.replace('text.', '')}{name}": tensor
        for name, tensor in state.items()
    }
    assert is_openai_clip(wrapped)
    assert all(torch.equal(found, state[name]) for name, found in to_openai(to_hugging_face(wrapped)).items())


def test_a_scale_with_a_dimension():
    state = samples.theirs().state_dict()
    state["logit_scale"] = state["logit_scale"].reshape(1)
    assert to_hugging_face(state)["logit_scale"].shape == ()


def test_what_only_training_needs_is_left_behind_and_named():
    state = samples.theirs().state_dict()
    theirs = dict.fromkeys(MORE, torch.zeros(1)) | state
    assert leftovers(theirs) == list(MORE)
    assert leftovers(state) == []
    assert to_hugging_face(theirs).keys() == to_hugging_face(state).keys()
    wrapped = {f"module.{name}": torch.zeros(1) for name in MORE}
    assert leftovers(wrapped) == list(wrapped)
    assert leftovers({"visual.proj": 1, "alpha": 1, "visual_mlp.weight": 1}) == []


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
        ("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
        ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
        ("visual.ln_pre.bias", "vision_model.pre_layrnorm.bias"),
        ("visual.proj (transposed)", "visual_projection.weight"),
        (
            "visual.transformer.resblocks.11.attn.in_proj_bias (values)",
            "vision_model.encoder.layers.11.self_attn.v_proj.bias",
        ),
        (
            "visual.transformer.resblocks.0.attn.out_proj.weight",
            "vision_model.encoder.layers.0.self_attn.out_proj.weight",
        ),
        ("transformer.resblocks.3.mlp.c_proj.weight", "text_model.encoder.layers.3.mlp.fc2.weight"),
        ("transformer.resblocks.3.ln_2.weight", "text_model.encoder.layers.3.layer_norm2.weight"),
        ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
        ("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        ("text_projection (transposed)", "text_projection.weight"),
        ("logit_scale", "logit_scale"),
    ],
)
def test_names_by_hand(theirs, ours):
    assert openai_name(ours) == theirs


def test_a_clip_is_told_from_a_blip():
    assert is_openai_clip(samples.theirs().state_dict())
    assert is_openai_clip(samples.custom().state_dict())
    for names in (authors_names(["text_encoder"]), ours().state_dict(), ["visual.conv1.weight"], ["logit_scale"]):
        assert not is_openai_clip(dict.fromkeys(names, torch.zeros(1)))


def resnet():
    """The state of a CLIP with OpenAI's other vision tower."""
    vision = CLIPVisionCfg(layers=(1, 1, 1, 1), width=8, head_width=8, image_size=32)
    return CLIP(16, vision, CLIPTextCfg(context_length=12, vocab_size=50, width=24, heads=3, layers=1)).state_dict()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda state: resnet(),
            "this is a CLIP whose images go through a ResNet; one with a vision transformer can be read",
        ),
        (
            lambda state: {
                name.replace("visual.transformer.resblocks", "visual.trunk.blocks"): state[name] for name in state
            },
            r"the vision tower of this CLIP is none of OpenAI's transformers: it has no weights named "
            r"'visual\.transformer\.resblocks\.', only \['visual\.class_embedding', .*\] \(\d+\); such a tower cannot",
        ),
        (
            lambda state: {
                name
                if name.startswith("visual.")
                else name.replace("transformer.resblocks", "text.transformer.layer"): state[name]
                for name in state
            },
            r"the text tower of this CLIP is none of OpenAI's transformers: it has no weights named "
            r"'transformer\.resblocks\.', only \['positional_embedding', ",
        ),
        (
            lambda state: state | {"transformer.resblocks.1.attn.in_proj_weight": torch.zeros(71, 24)},
            r"transformer\.resblocks\.1\.attn\.in_proj_weight is \(71, 24\): its rows are not three equal parts for q,",
        ),
    ],
)
def test_messages(change, text):
    with pytest.raises(ValueError, match=text) as caught:
        to_hugging_face(change(samples.theirs().state_dict()))
    assert "\n" not in str(caught.value)
