import ast
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, BlipTextConfig, BlipVisionConfig

from tests.families.blip_nlvr import reference, samples
from upop.families.blip_nlvr import BlipForVisualReasoning, BlipNlvrConfig, modeling
from upop.families.models import build_dense

HEADS = (4, 3)


@pytest.mark.parametrize("merge_from", [0, 1, 2, 4])
def test_outputs_are_those_of_the_reference(merge_from):
    model, inputs = samples.model(merge_from=merge_from), samples.inputs()
    expected = reference.reasoning(
        model.state_dict(), inputs["pixel_values"], inputs["input_ids"], HEADS, inputs["attention_mask"]
    )
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-4, atol=1e-5)
    assert expected.std(0).min() > 0.01, "the reference tells the samples apart"


def test_padding_does_not_count_and_no_mask_means_all():
    model, inputs = samples.model(), samples.inputs()
    with torch.no_grad():
        logits = model(**inputs).logits
        other = inputs | {"input_ids": inputs["input_ids"].where(inputs["attention_mask"].bool(), 5)}
        assert torch.equal(model(**other).logits, logits)
        everything = inputs | {"attention_mask": torch.ones_like(inputs["attention_mask"])}
        inputs.pop("attention_mask")
        torch.testing.assert_close(model(**inputs).logits, model(**everything).logits)


def test_the_two_images_are_told_apart():
    model, inputs = samples.model(), samples.inputs()
    swapped = inputs | {"pixel_values": inputs["pixel_values"].flip(1)}
    with torch.no_grad():
        assert (model(**inputs).logits - model(**swapped).logits).abs().max() > 0.01


def test_samples_of_a_batch_do_not_mix():
    model, inputs = samples.model(), samples.inputs()
    alone = {name: value[1:2] for name, value in inputs.items()}
    with torch.no_grad():
        torch.testing.assert_close(model(**alone).logits, model(**inputs).logits[1:2])


def authors_names(blocks, layers, merge_from):
    """What model_base_nlvr.pth holds, besides position_ids, after the authors' modules."""
    weights = [f"visual_encoder.{name}" for name in ("patch_embed.proj", "norm")]
    for number in range(blocks):
        parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        weights += [f"visual_encoder.blocks.{number}.{part}" for part in parts]
    weights.append("text_encoder.embeddings.LayerNorm")
    for number in range(layers):
        parts = [f"attention.self.{part}" for part in ("query", "key", "value")]
        parts += [f"crossattention.self{twin}.{part}" for twin in (0, 1) for part in ("query", "key", "value")]
        parts += ["attention.output.dense", "attention.output.LayerNorm", "intermediate.dense", "output.dense"]
        parts += [f"crossattention.output.{part}" for part in ("dense0", "dense1", "LayerNorm")]
        parts += ["output.LayerNorm"] + ["crossattention.output.merge_layer"] * (number >= merge_from)
        weights += [f"text_encoder.encoder.layer.{number}.{part}" for part in parts]
    names = {f"{name}.{part}" for name in [*weights, "cls_head.0", "cls_head.2"] for part in ("weight", "bias")}
    embeddings = {f"text_encoder.embeddings.{part}_embeddings.weight" for part in ("word", "position")}
    return names | embeddings | {"visual_encoder.cls_token", "visual_encoder.pos_embed"}


def test_the_default_is_the_authors_base_model():
    with torch.device("meta"):
        model = BlipForVisualReasoning(BlipNlvrConfig())
    state = model.state_dict()
    assert set(state) == authors_names(12, 12, 6)
    assert state["visual_encoder.pos_embed"].shape == (1, 577, 768)
    assert state["text_encoder.embeddings.word_embeddings.weight"].shape == (30524, 768)
    assert state["text_encoder.encoder.layer.6.crossattention.output.merge_layer.weight"].shape == (768, 1536)
    norm, square = 2 * 768, 768 * 768 + 768
    mlp = 768 * 3072 + 3072 + 3072 * 768 + 768
    vision = 768 * (3 * 16 * 16 + 1) + 768 + 577 * 768 + 12 * (4 * square + mlp + 2 * norm) + norm
    text = (30524 + 512) * 768 + norm + 12 * (4 * square + 8 * square + mlp + 3 * norm) + 6 * (2 * 768 * 768 + 768)
    head = square + 2 * 768 + 2
    # The paper's table says 259.5 M for NLVR2: this, and the authors' 76,800 masks.
    assert sum(value.numel() for value in state.values()) == vision + text + head == 259_372_034
    assert (model.config.text_config.hidden_dropout_prob, model.config.drop_path) == (0.1, 0.1)


def test_a_large_vision_tower_has_its_own_width():
    with torch.device("meta"):
        large = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
        model = BlipForVisualReasoning(BlipNlvrConfig(vision_config=large))
    attention = model.text_encoder.encoder.layer[0].crossattention.self1
    assert (attention.key.in_features, attention.query.in_features, attention.num_heads) == (1024, 768, 12)
    assert set(model.state_dict()) == authors_names(24, 12, 6)


def test_config():
    config = samples.config()
    assert (config.merge_from, config.text_config.encoder_hidden_size) == (2, 32)
    assert (config.vision_config.layer_norm_eps, config.text_config.num_attention_heads) == (1e-6, 3)
    made = BlipNlvrConfig(vision_config=BlipVisionConfig(), text_config=BlipTextConfig(num_attention_heads=12))
    assert (made.vision_config.layer_norm_eps, made.text_config.hidden_dropout_prob) == (1e-5, 0.0), "as they say"
    again = BlipNlvrConfig.from_dict(samples.config(merge_from=3, drop_path=0.3).to_dict())
    assert (again.merge_from, again.drop_path, again.text_config.hidden_size) == (3, 0.3, 24)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"merge_from": 5}, "merge_from is 5; the text encoder has layers 0 to 3"),
        ({"merge_from": -1}, "merge_from is -1; the text encoder has layers 0 to 3"),
        (
            {"vision_config": {"hidden_size": 30, "num_attention_heads": 4}},
            "vision_config has 4 heads for a width of 30; the width has to be a multiple of the heads",
        ),
    ],
)
def test_config_messages(changes, text):
    with pytest.raises(ValueError, match=text):
        samples.config(**changes)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"pixel_values": torch.zeros(3, 3, 16, 16)},
            r"pixel_values has shape \(3, 3, 16, 16\); expected \(batch, 2, 3, 16, 16\)",
        ),
        (
            {"pixel_values": torch.zeros(3, 2, 3, 24, 24)},
            r"pixel_values has shape \(3, 2, 3, 24, 24\); expected \(batch, 2, 3, 16, 16\)",
        ),
        (
            {"input_ids": torch.zeros(3, 13, dtype=torch.long)},
            "input_ids has 13 tokens a statement; the model has 12 positions",
        ),
    ],
)
def test_input_messages(change, text):
    with pytest.raises(ValueError, match=text):
        samples.model()(**samples.inputs() | change)


def test_saved_and_loaded_by_transformers(tmp_path):
    model, inputs = samples.model(), samples.inputs()
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is BlipNlvrConfig
    loaded, info = BlipForVisualReasoning.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(build_dense(str(tmp_path))) is BlipForVisualReasoning
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_new_weights_are_small_and_random():
    torch.manual_seed(0)
    model = BlipForVisualReasoning(samples.config())
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            assert 0.01 < parameter.std() < 0.03, name
    assert (model.visual_encoder.norm.weight == 1).all()


def test_dropout_and_drop_path_are_for_training_only():
    text = samples.config().text_config.to_dict() | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    inputs = samples.inputs()
    still = samples.model(text_config=text, drop_path=0.0).train()
    assert torch.equal(still(**inputs).logits, still(**inputs).logits)
    for changes in ({"text_config": text, "drop_path": 0.5}, {"drop_path": 0.0}):
        moving = samples.model(**changes).train()
        assert not torch.equal(moving(**inputs).logits, moving(**inputs).logits)
        moving.eval()
        assert torch.equal(moving(**inputs).logits, moving(**inputs).logits)


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    torch.manual_seed(0)
    layer = modeling.DropPath(0.25).train()
    dropped = layer(torch.ones(4000, 2, 3))
    rows = dropped.flatten(1)
    assert ((rows == 0).all(1) | torch.isclose(rows, torch.tensor(1 / 0.75)).all(1)).all()
    assert abs(dropped.mean() - 1) < 0.05
    rates = [block.drop_path.probability for block in samples.model(drop_path=0.3).visual_encoder.blocks]
    assert rates == [0.0, 0.3]


def test_gradient_checkpointing_gives_the_same_gradients():
    text = samples.config().text_config.to_dict() | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    gradients = []
    for checkpointing in (False, True):
        model = samples.model(text_config=text, drop_path=0.0).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**samples.inputs()).logits.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)


def test_the_file_stands_alone():
    tree = ast.parse(Path(modeling.__file__).read_text())
    found = {node.module.partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    found |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert found - set(sys.stdlib_module_names) == {"torch", "transformers"}
