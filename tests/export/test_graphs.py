import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
)

from tests import tiny
from tests.export import samples
from upop.export.graphs import graphs_of

PAIR = {
    "image": ("pixel_values", "image_embeds"),
    "text": ("input_ids attention_mask", "text_embeds"),
    "model": ("pixel_values input_ids attention_mask", "image_embeds text_embeds logits_per_image"),
}
STATEMENT = "pixel_values input_ids attention_mask"
EXPECTED = {
    "clip": PAIR,
    "siglip": PAIR,
    "dual_encoder": PAIR,
    "vit": {"model": ("pixel_values", "last_hidden_state")},
    "deit": {"model": ("pixel_values", "last_hidden_state")},
    "bert": {"model": ("input_ids attention_mask", "last_hidden_state")},
    "timm_vit": {"model": ("pixel_values", "logits")},
    "blip_retrieval": PAIR | {"model": (STATEMENT, "image_embeds text_embeds"), "matching": (STATEMENT, "itm_score")},
    "blip_vqa": {
        "image": ("pixel_values", "image_states"),
        "question": ("image_states input_ids attention_mask", "question_states"),
        "answer": ("question_states attention_mask decoder_input_ids", "logits"),
    },
    "blip_captioning": {
        "image": ("pixel_values", "image_states"),
        "caption": ("image_states input_ids attention_mask", "logits"),
    },
    "blip_nlvr": {"model": (STATEMENT, "logits")},
}


@torch.no_grad()
def graphs(model):
    return {graph.name: graph for graph in graphs_of(model.eval())}


def run(graph, sizes):
    """What the module of a graph gives."""
    with torch.no_grad():
        found = graph.module(**graph.sample(sizes))
    return [found] if isinstance(found, torch.Tensor) else list(found)


def test_every_architecture_is_known():
    assert set(EXPECTED) == set(tiny.MODELS)


@pytest.mark.parametrize("name", EXPECTED)
def test_what_the_graphs_take_and_give(name):
    found = graphs(samples.model(name))
    ports = {
        one.name: (" ".join(port.name for port in one.inputs), " ".join(output.name for output in one.outputs))
        for one in found.values()
    }
    assert ports == EXPECTED[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_outputs_have_the_sizes_that_the_graph_says(name):
    for graph in graphs(samples.model(name)).values():
        for sizes in [graph.traced(), *graph.checked()]:
            values = run(graph, sizes)
            assert len(values) == len(graph.outputs)
            for output, value in zip(graph.outputs, values, strict=True):
                expected = tuple(sizes[dim] for dim in output.varies)
                assert tuple(value.shape[: len(expected)]) == expected
                lengths = value.norm(dim=-1)
                assert torch.allclose(lengths, torch.ones_like(lengths)) == output.normalised


def test_sizes_are_the_models():
    found = graphs(samples.model("blip_nlvr"))["model"]
    assert found.inputs[0].shape == ("batch", 2, 3, 16, 16)
    assert (found.words.count, found.words.longest, found.words.end, found.words.pad) == (50, 12, 1, 1)
    timm = graphs(samples.model("timm_vit"))["model"]
    assert (timm.inputs[0].shape, timm.words) == (("batch", 3, 32, 32), None)
    answer = graphs(samples.model("blip_vqa"))["answer"]
    assert answer.inputs[0].shape == ("batch", "text_length", 24)
    assert answer.limits() == {"batch": None, "text_length": 12, "answer_length": 12}
    assert graphs(samples.model("blip_captioning"))["caption"].inputs[0].shape == ("batch", 5, 32)


def test_clip_of_old_configs_ends_with_the_last_token():
    text = tiny.TEXT | tiny.IDS | {"eos_token_id": 2}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=tiny.VISION, projection_dim=16))
    assert graphs(model)["text"].words.end == 49
    assert graphs(samples.model("clip"))["text"].words.end == 1


@pytest.mark.parametrize(
    ("model", "output", "varies"),
    [
        (lambda: BertForMaskedLM(BertConfig(**tiny.TEXT)), "logits", ("batch", "text_length")),
        (lambda: BertForSequenceClassification(BertConfig(**tiny.TEXT)), "logits", ("batch",)),
        (lambda: ViTForImageClassification(ViTConfig(**tiny.VISION)), "logits", ("batch",)),
        (lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(**tiny.VISION)), "image_embeds", ("batch",)),
        (lambda: SiglipVisionModel(SiglipVisionConfig(**tiny.VISION)), "last_hidden_state", ("batch",)),
        (lambda: CLIPTextModel(CLIPTextConfig(**tiny.TEXT)), "last_hidden_state", ("batch", "text_length")),
    ],
)
def test_towers_and_heads_on_their_own(model, output, varies):
    found = graphs(model())
    assert list(found) == ["model"]
    assert [(one.name, one.varies, one.normalised) for one in found["model"].outputs] == [(output, varies, False)]
    assert run(found["model"], found["model"].checked()[0])[0].shape[: len(varies)]


def test_a_timm_model_without_a_head_gives_features():
    model = samples.model("timm_vit")
    model.reset_classifier(0)
    assert graphs(model)["model"].outputs[0].name == "features"


class Captioner(nn.Module):
    """Takes images and texts, and says nothing of what it is."""

    def __init__(self):
        super().__init__()
        self.config = tiny.blip_config()


class Silent(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = BertConfig(**tiny.TEXT)

    def forward(self, input_ids):
        return {"nothing": None}


def test_models_that_are_not_known():
    with pytest.raises(ValueError, match=r"cannot make graphs of a Captioner; of dual encoders, .*\['BlipForCond"):
        graphs(Captioner())
    with pytest.raises(
        ValueError, match=r"cannot make a graph of a Silent: it gives \['nothing'\], none of \('logits'"
    ):
        graphs(Silent())
