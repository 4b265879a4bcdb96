"""The functions against what the models of transformers and timm say themselves."""

import pytest
import torch
from torch.nn import functional as F

from tests import tiny
from upop.export.graphs import modules as m


def texts(batch=4, length=9, seed=0):
    """Texts of which all but the first are padded."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 50, (batch, length), generator=generator)
    mask = torch.ones(batch, length, dtype=torch.long)
    for row in range(1, batch):
        mask[row, length - row :] = 0
    ids[:, -1] = 1
    return {"input_ids": torch.where(mask == 1, ids, 1), "attention_mask": mask}


def images(batch=4, seed=0):
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["clip", "siglip", "dual_encoder"])
@torch.no_grad()
def test_dual_encoders(name):
    model = tiny.build(name)
    said = model(pixel_values=images(3), **texts(4))
    found = m.Pairs(model)(images(3), **texts(4))
    for value, right in zip(found, (said.image_embeds, said.text_embeds, said.logits_per_image), strict=True):
        close(value, right)
    close(m.ImageEmbeds(model)(images(3)), said.image_embeds)
    close(m.TextEmbeds(model)(**texts(4)), said.text_embeds)
    close(found[0].norm(dim=-1), torch.ones(3))


@torch.no_grad()
def test_blip_retrieval():
    model = tiny.build("blip_retrieval")
    cosines = model(pixel_values=images(3), **texts(4), use_itm_head=False).itm_score
    image, text = m.Pairs(model)(images(3), **texts(4))  # BLIP has no scale
    close(image @ text.T, cosines)
    close(m.Matching(model)(images(), **texts()), model(pixel_values=images(), **texts()).itm_score)


@torch.no_grad()
def test_blip_answers_in_three_steps():
    model = tiny.build("blip_vqa")
    answers = torch.randint(2, 50, (4, 5))
    seen = []
    hook = model.text_decoder.register_forward_hook(lambda _, __, output: seen.append(output.logits))
    model(pixel_values=images(), **texts(), decoder_input_ids=answers)
    hook.remove()
    states = m.ImageStates(model)(images())
    question = m.Question(model)(states, **texts())
    close(m.Answer(model)(question, texts()["attention_mask"], answers), seen[0])


@torch.no_grad()
def test_blip_captions_in_two_steps():
    model = tiny.build("blip_captioning")
    said = model(pixel_values=images(), **texts())
    states = m.ImageStates(model)(images())
    close(states, said.last_hidden_state)
    close(m.Caption(model)(states, **texts()), said.logits)


@torch.no_grad()
def test_blip_captions_word_by_word_are_those_of_generate():
    model = tiny.build("blip_captioning")
    words = torch.full((4, 1), 0)
    states = m.ImageStates(model)(images())
    for _ in range(5):
        logits = m.Caption(model)(states, words, torch.ones_like(words))[:, -1]
        logits[:, 1] = -torch.inf  # the end, which generate is told to put off
        words = torch.cat([words, logits.argmax(-1, keepdim=True)], dim=1)
    said = model.generate(images(), max_new_tokens=5, min_new_tokens=5, do_sample=False, num_beams=1)
    assert said.tolist() == words.tolist()


@torch.no_grad()
def test_blip_judges_statements():
    model = tiny.build("blip_nlvr")
    pairs = torch.stack([images(), images(seed=1)], dim=1)
    close(m.Statement(model)(pairs, **texts()), model(pixel_values=pairs, **texts()).logits)


@torch.no_grad()
def test_models_of_one_kind_of_input():
    model = tiny.build("vit")
    close(m.ImageModel(model, "last_hidden_state")(images()), model(images()).last_hidden_state)
    model = tiny.build("timm_vit")
    close(m.ImageModel(model, "logits")(images()), model(images()))
    model = tiny.build("bert")
    close(m.TextModel(model, "pooler_output")(**texts()), model(**texts()).pooler_output)


def test_lengths_of_embeddings_are_one_even_in_a_corner():
    assert torch.equal(m._unit(torch.zeros(2, 3)), F.normalize(torch.zeros(2, 3)))
