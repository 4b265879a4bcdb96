"""Models made of one for retrieval see what that one sees: Hugging Face's own is the reference."""

import copy

import pytest
import torch
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

from tests import tiny
from upop.families import growing
from upop.families.blip_nlvr import BlipForVisualReasoning


def retrieval(**settings):
    torch.manual_seed(0)
    model = BlipForImageTextRetrieval(tiny.blip_config(layer_norm_eps=1e-6, **settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def inputs(dense):
    side = dense.config.vision_config.image_size
    ids = torch.randint(5, 20, (3, 7))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return torch.randn(3, 3, side, side), ids, mask


@torch.no_grad()
def test_text_with_one_image_twice_is_what_retrieval_makes_of_it():
    dense = retrieval()
    grown = growing.reasoning(copy.deepcopy(dense))
    pixels, ids, mask = inputs(dense)
    width = grown.config.text_config.hidden_size
    for layer in grown.text_encoder.encoder.layer:
        merge = layer.crossattention.output.merge_layer
        if merge is not None:  # averages, as the layers before it
            merge.weight.copy_(torch.eye(width).repeat(1, 2) / 2)
            merge.bias.zero_()
    images = dense.vision_model(pixels).last_hidden_state
    expected = dense.text_encoder(ids, attention_mask=mask, encoder_hidden_states=images).last_hidden_state
    assert grown.config.merge_from < grown.config.text_config.num_hidden_layers
    found = grown.visual_encoder(pixels)
    torch.testing.assert_close(found, images, rtol=1e-5, atol=1e-5)
    states = grown.text_encoder(ids, found, found, mask)
    torch.testing.assert_close(states[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=1e-5)
    assert expected.std() > 0.1


@torch.no_grad()
def test_a_question_with_an_image_is_what_retrieval_makes_of_it():
    dense = retrieval(hidden_size=24)
    grown = growing.answering(copy.deepcopy(dense))
    pixels, ids, mask = inputs(dense)
    images = dense.vision_model(pixels).last_hidden_state
    torch.testing.assert_close(grown.vision_model(pixels).last_hidden_state, images, rtol=1e-5, atol=1e-5)
    for encoder in (grown.text_encoder, grown.text_decoder.bert):
        seen = [part(ids, attention_mask=mask, encoder_hidden_states=images).last_hidden_state[mask.bool()]
                for part in (dense.text_encoder, encoder)]  # fmt: skip
        torch.testing.assert_close(seen[1], seen[0], rtol=1e-4, atol=1e-5)
    assert grown.config.architectures == ["BlipForQuestionAnswering"]


def test_what_there_is_twice_learns_apart_and_the_head_is_new():
    grown = growing.reasoning(retrieval())
    attention = grown.text_encoder.encoder.layer[0].crossattention
    assert torch.equal(attention.self0.query.weight, attention.self1.query.weight)
    assert attention.self0.query.weight.data_ptr() != attention.self1.query.weight.data_ptr()
    assert attention.output.dense0.weight.data_ptr() != attention.output.dense1.weight.data_ptr()
    assert isinstance(grown, BlipForVisualReasoning)
    assert not grown.training
    assert grown.cls_head[0].weight.abs().max() > 0
    answerer = growing.answering(retrieval(hidden_size=24))
    encoder, decoder = answerer.text_encoder, answerer.text_decoder.bert
    for name, weight in encoder.named_parameters():
        other = decoder.get_parameter(name)
        assert torch.equal(weight, other), name
        assert weight.data_ptr() != other.data_ptr(), name


@pytest.mark.parametrize("make", [growing.reasoning, growing.answering])
def test_on_the_meta_device_it_has_sizes_alone(make):
    with torch.device("meta"):
        dense = BlipForImageTextRetrieval(tiny.blip_config(hidden_size=24))
    assert all(parameter.is_meta for parameter in make(dense).parameters())


def test_what_cannot_become_it_is_refused():
    other = BlipForConditionalGeneration(tiny.blip_config())
    assert [growing.can_grow(model) for model in (other, retrieval())] == [False, True]
    with pytest.raises(ValueError, match="BlipForConditionalGeneration cannot become a BlipForVisualReasoning; a Blip"):
        growing.reasoning(other)
    with pytest.raises(ValueError, match="BlipForConditionalGeneration cannot become a BlipForQuestionAnswering; a Bl"):
        growing.answering(other)
    with pytest.raises(ValueError, match="images of width 16 and text of width 24; BlipForQuestionAnswering needs one"):
        growing.answering(retrieval(hidden_size=16))
