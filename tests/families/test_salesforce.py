import pytest
import torch
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipForQuestionAnswering

from tests import tiny
from tests.families.blip_nlvr import reference, samples
from upop.families.salesforce import (
    hugging_face_name,
    leftovers,
    salesforce_name,
    task_of,
    to_hugging_face,
    to_salesforce,
)

CLASSES = {
    "retrieval": BlipForImageTextRetrieval,
    "vqa": BlipForQuestionAnswering,
    "captioning": BlipForConditionalGeneration,
}
HEADS = (4, 3)


def model(task, seed=0):
    """Hugging Face's own model, nothing swapped, with the authors' epsilon and weights far from 0."""
    if task == "nlvr":
        return samples.model(seed)
    torch.manual_seed(seed)
    width = {"hidden_size": 24} if task == "vqa" else {}  # whose decoder looks at the text
    made = CLASSES[task](tiny.blip_config(layer_norm_eps=1e-6, **width)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def authors_names(text):
    """Names of a small checkpoint as the authors' modules give them; ``text`` are its text towers."""
    weights = [f"visual_encoder.{name}" for name in ("patch_embed.proj", "norm")]
    for block in range(2):
        parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        weights += [f"visual_encoder.blocks.{block}.{part}" for part in parts]
    names = {"visual_encoder.cls_token", "visual_encoder.pos_embed"}
    for tower in text:
        weights.append(f"{tower}.embeddings.LayerNorm")
        names |= {f"{tower}.embeddings.{part}_embeddings.weight" for part in ("word", "position")}
        for layer in range(3):
            parts = [
                f"{name}.{part}"
                for name in ("attention", "crossattention")
                for part in ("self.query", "self.key", "self.value", "output.dense", "output.LayerNorm")
            ]
            parts += ["intermediate.dense", "output.dense", "output.LayerNorm"]
            weights += [f"{tower}.encoder.layer.{layer}.{part}" for part in parts]
    if "text_decoder.bert" in text:
        head = "text_decoder.cls.predictions"
        weights += [f"{head}.{part}" for part in ("transform.dense", "transform.LayerNorm", "decoder")]
        names.add(f"{head}.bias")
    else:
        weights += ["vision_proj", "text_proj", "itm_head"]
    return names | {f"{name}.{part}" for name in weights for part in ("weight", "bias")}


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ("retrieval", ["text_encoder"]),
        ("vqa", ["text_encoder", "text_decoder.bert"]),
        ("captioning", ["text_decoder.bert"]),
    ],
)
def test_names_are_the_authors(task, text):
    assert set(to_salesforce(model(task).state_dict())) == authors_names(text)


@pytest.mark.parametrize("task", ["retrieval", "vqa", "captioning", "nlvr"])
def test_there_and_back(task):
    state = model(task).state_dict()
    theirs = to_salesforce(state)
    assert (task_of(state), task_of(theirs)) == (task, task)
    back = to_hugging_face(theirs)
    assert list(back) == list(state)
    assert all(torch.equal(back[name], state[name]) for name in state)
    again = to_salesforce(back)
    assert all(again[name] is theirs[name] for name in theirs), "nothing is copied"
    assert to_hugging_face(state).keys() == state.keys(), "names that are Hugging Face's already stay"


def test_both_scores_of_retrieval_are_the_reference():
    made, inputs = model("retrieval"), samples.inputs()
    images, ids, mask = inputs["pixel_values"][:, 0], inputs["input_ids"], inputs["attention_mask"]
    theirs = to_salesforce(made.state_dict())
    with torch.no_grad():
        found = made(ids, images, attention_mask=mask)
        cosines = made(ids, images, attention_mask=mask, use_itm_head=False).itm_score
    close(found.last_hidden_state, reference.vision(theirs, images, 4))
    close(found.itm_score, reference.matching(theirs, images, ids, HEADS, mask))
    close(cosines, reference.contrast(theirs, images, ids, HEADS, mask))


def test_captioning_is_the_reference():
    made, inputs = model("captioning"), samples.inputs()
    images, ids, mask = inputs["pixel_values"][:, 0], inputs["input_ids"], inputs["attention_mask"]
    theirs = to_salesforce(made.state_dict())
    with torch.no_grad():
        logits = made(images, ids, attention_mask=mask).logits
    expected = reference.decoder(theirs, ids, reference.vision(theirs, images, 4), 3, mask)
    close(logits[mask.bool()], expected[mask.bool()])


def test_vqa_is_the_reference():
    """Without padding: transformers' decoder (5.17 to 5.23) attends to padded questions too, the authors' does not."""
    made, inputs = model("vqa"), samples.inputs()
    images, ids, mask = inputs["pixel_values"][:, 0], inputs["input_ids"], torch.ones_like(inputs["attention_mask"])
    answers, theirs = ids[:, :5].flip(1), to_salesforce(made.state_dict())
    caught = []
    made.text_decoder.register_forward_hook(lambda _, __, result: caught.append(result.logits))
    with torch.no_grad():
        made(ids, images, decoder_input_ids=answers, attention_mask=mask)
    question = reference.text(theirs, "text_encoder", ids, 3, mask, reference.vision(theirs, images, 4))
    close(caught[0], reference.decoder(theirs, answers, question, 3, others_mask=mask))


def test_nlvr_is_the_reference():
    made, inputs = model("nlvr"), samples.inputs()
    theirs = to_salesforce(made.state_dict())
    assert list(theirs) == list(made.state_dict()), "nothing is renamed"
    expected = reference.reasoning(theirs, inputs["pixel_values"], inputs["input_ids"], HEADS, inputs["attention_mask"])
    with torch.no_grad():
        close(made(**inputs).logits, expected)


def close(found, expected):
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


MORE = (
    "visual_encoder_m.blocks.0.norm1.weight",
    "vision_proj_m.bias",
    "text_encoder_m.embeddings.word_embeddings.weight",
    "text_encoder_m.embeddings.position_ids",
    "text_proj_m.weight",
    "image_queue",
    "text_queue",
    "idx_queue",
    "ptr_queue",
    "queue_ptr",
    "temp",
    "text_encoder.embeddings.position_ids",
    "text_decoder.bert.embeddings.position_ids",
)


def test_what_only_training_needs_is_left_behind_and_named():
    state = model("retrieval").state_dict()
    theirs = dict.fromkeys(MORE[:-1], torch.zeros(1)) | to_salesforce(state)
    assert leftovers(theirs) == list(MORE[:-1])
    assert leftovers(state) == []
    assert to_hugging_face(theirs).keys() == state.keys()
    vqa = to_salesforce(model("vqa").state_dict()) | dict.fromkeys(MORE[-2:], torch.zeros(1))
    assert leftovers(vqa) == list(MORE[-2:])
    assert leftovers({"temperature": 1, "text_encoder.temp": 1, "my_queue_ptr": 1}) == []


def test_masks_of_a_search_are_left_behind_and_named():
    masks = [
        "visual_encoder.blocks.0.attn.alpha",
        "visual_encoder.blocks.0.mlp.alpha",
        "text_encoder.encoder.layer.1.attention.self.alpha",
        "text_encoder.encoder.layer.1.crossattention.self1.alpha",
        "text_decoder.bert.encoder.layer.2.intermediate.alpha",
    ]
    assert leftovers(dict.fromkeys([*masks, "alpha", "cls_head.alpha"], torch.ones(1))) == masks


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding"),
        ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"),
        ("visual_encoder.patch_embed.proj.weight", "vision_model.embeddings.patch_embedding.weight"),
        ("visual_encoder.blocks.11.norm2.bias", "vision_model.encoder.layers.11.layer_norm2.bias"),
        ("visual_encoder.blocks.0.attn.qkv.weight", "vision_model.encoder.layers.0.self_attn.qkv.weight"),
        ("visual_encoder.blocks.0.mlp.fc1.weight", "vision_model.encoder.layers.0.mlp.fc1.weight"),
        ("visual_encoder.norm.bias", "vision_model.post_layernorm.bias"),
        ("vision_proj.weight", "vision_proj.weight"),
        ("text_encoder.encoder.layer.0.attention.self.key.weight",) * 2,
    ],
)
def test_names_by_hand(theirs, ours):
    assert hugging_face_name(theirs) == ours
    assert salesforce_name(ours) == theirs


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (
            ["a.weight", "b.weight", "c.weight", "d.weight"],
            r"not the weights of a BLIP: they are named \['a\.weight', 'b\.weight', 'c\.weight', \.\.\.\] \(4\); a",
        ),
        (
            ["visual_encoder.cls_token"],
            r"not the weights of a BLIP: they are named \['visual_encoder\.cls_token'\]; a BL",
        ),
        (
            ["visual_encoder.norm.bias", "text_encoder.x", "text_decoder.x", "itm_head.bias"],
            "these are the weights of BLIP's pre-training, which has both 'itm_head' and 'text_decoder'; give those of",
        ),
        (
            ["visual_encoder.norm.bias", "text_encoder.x"],
            r"without the head of a task: they are of \['text_encoder', 'visual_encoder'\]; retrieval has 'itm_head', ",
        ),
        (
            ["visual_encoder.norm.bias", "text_encoder.x.crossattention.self.query", "cls_head.0.bias"],
            "without the head of a task",
        ),
    ],
)
def test_messages(names, text):
    for read in (task_of, to_hugging_face):
        with pytest.raises(ValueError, match=text):
            read(dict.fromkeys(names, torch.zeros(1)))
