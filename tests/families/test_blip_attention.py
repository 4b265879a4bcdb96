import copy

import pytest
import torch
from torch import nn
from transformers import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipVisionConfig,
    BlipVisionModel,
)
from transformers.models.blip.modeling_blip import BlipAttention
from transformers.models.blip.modeling_blip_text import BlipTextAttention

from tests import tiny
from upop.export import save
from upop.families.blip_attention import BlipVisionAttention, swap_attention_

CLASSES = {
    "blip_retrieval": BlipForImageTextRetrieval,
    "blip_vqa": BlipForQuestionAnswering,
    "blip_captioning": BlipForConditionalGeneration,
}
MODELS = pytest.mark.parametrize("name", CLASSES)


def classes(model):
    return {type(module) for module in model.modules() if isinstance(module, BlipAttention)}


def pair(**config):
    """A vision tower of Hugging Face and the same swapped."""
    torch.manual_seed(0)
    theirs = BlipVisionModel(BlipVisionConfig(**tiny.VISION, initializer_range=0.3, **config)).eval()
    ours = copy.deepcopy(theirs)
    swap_attention_(ours)
    return theirs, ours, torch.randn(2, 3, 16, 16)


@MODELS
def test_outputs_are_those_of_hugging_face(name):
    ours = tiny.build(name)
    theirs = CLASSES[name](ours.config).eval()
    assert classes(theirs) == {BlipAttention}
    theirs.load_state_dict(ours.state_dict())
    expected = tiny.outputs(theirs)
    assert (tiny.outputs(ours) - expected).abs().max() <= 1e-6
    weights = {key: id(value) for key, value in theirs.named_parameters()}
    keys = list(theirs.state_dict())
    swap_attention_(theirs)
    swap_attention_(theirs)  # twice is like once
    assert classes(theirs) == {BlipVisionAttention}
    assert {key: id(value) for key, value in theirs.named_parameters()} == weights
    assert list(theirs.state_dict()) == keys
    assert not theirs.training
    assert (tiny.outputs(theirs) - expected).abs().max() <= 1e-6


@MODELS
def test_hugging_face_loads_what_a_swapped_model_saves(tmp_path, name):
    model = tiny.build(name)
    save(model, None, tmp_path / "dense")
    loaded, info = CLASSES[name].from_pretrained(tmp_path / "dense", output_loading_info=True)
    assert not any(info.values())
    assert classes(loaded) == {BlipAttention}
    assert (tiny.outputs(loaded) - tiny.outputs(model)).abs().max() <= 1e-6


def test_gradients_are_those_of_hugging_face():
    theirs, ours, images = pair()
    for model in (theirs, ours):
        model(images).last_hidden_state.square().mean().backward()
    for one, other in zip(theirs.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("how", ["argument", "config"])
def test_attentions_and_hidden_states_are_recorded_as_by_hugging_face(before, how):
    theirs, ours, images = pair()
    if before:  # transformers installs its hooks at the first question, here before the swap
        ours = copy.deepcopy(theirs)
        ours(images, output_attentions=True)
        swap_attention_(ours)
    for model in (theirs, ours):
        model.config.output_attentions = how == "config"
    asked = {"output_attentions": True} if how == "argument" else {}
    with torch.no_grad():
        expected, found = (model(images, output_hidden_states=True, **asked) for model in (theirs, ours))
    assert [value.shape for value in found.attentions] == [(2, 4, 5, 5)] * 2
    torch.testing.assert_close(found.attentions, expected.attentions, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.hidden_states, expected.hidden_states, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.pooler_output, expected.pooler_output, atol=1e-5, rtol=0)
    assert ours(images, output_attentions=False).attentions is None


def test_dropout_is_that_of_hugging_face_and_only_in_training():
    theirs, ours, images = pair(attention_dropout=0.5)
    with torch.no_grad():
        assert torch.equal(ours(images).pooler_output, ours(images).pooler_output)
        for model in (theirs, ours):
            model.train()
        found = []
        for model in (theirs, ours):  # the explicit path draws the same numbers as transformers'
            torch.manual_seed(3)
            found.append(model(images, output_attentions=True).last_hidden_state)
        torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=0)

        states = torch.randn(1, 5, 32)
        attention = ours.encoder.layers[0].self_attn
        draws = torch.cat([attention(states)[0] for _ in range(4000)])
        whole = attention.eval()(states)[0][0]
    assert draws.std(0).min() > 0.05 * whole.abs().mean()
    # The output is linear in the weights, so the draws have the whole one as their mean.
    assert ((draws.mean(0) - whole).abs() / (draws.std(0) / 4000**0.5)).max() < 5


def test_models_without_such_attention_stay_as_they_are():
    model = nn.Sequential(nn.Linear(2, 2))
    swap_attention_(model)
    assert type(model[0]) is nn.Linear


@torch.no_grad()
def test_an_answer_does_not_depend_on_the_padding_of_its_question():
    model = tiny.build("blip_vqa")
    torch.manual_seed(0)
    pixels, ids = torch.randn(1, 3, 16, 16), torch.randint(5, 40, (1, 5))
    padded = torch.cat([ids, torch.zeros(1, 4, dtype=torch.long)], dim=1)
    states = model.vision_model(pixels).last_hidden_state

    def logits(ids, mask):
        question = model.text_encoder(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=states, return_dict=True
        ).last_hidden_state
        return model.text_decoder(
            input_ids=torch.tensor([[3, 4, 5]]), encoder_hidden_states=question, encoder_attention_mask=mask
        ).logits

    alone = logits(ids, torch.ones_like(ids))
    with_padding = logits(padded, (padded != 0).long())
    assert (alone - with_padding).abs().max() <= 1e-5
    for layer in model.text_decoder.bert.encoder.layer:  # what Hugging Face's own does
        layer.crossattention.__class__ = BlipTextAttention
    assert (logits(padded, (padded != 0).long()) - alone).abs().max() > 1e-3
