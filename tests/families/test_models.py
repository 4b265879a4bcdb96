import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertModel

from tests import tiny
from tests.export import samples
from upop.families import example_inputs, find_sites, image_features, load_dense, text_features
from upop.families.models import build_dense, describe
from upop.structure import Plan
from upop.surgery import shrink_

MODELS = pytest.mark.parametrize("name", tiny.MODELS)


@pytest.fixture
def checkpoint(tmp_path):
    return samples.directory(tmp_path / "clip")


def tamper(checkpoint, change):
    weights = load_file(checkpoint / "model.safetensors")
    change(weights)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", [name for name in tiny.MODELS if name != "timm_vit"])
def test_load_dense(tmp_path, name):
    path = samples.directory(tmp_path / name, name)
    model, processor = load_dense(str(path))
    assert not model.training
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert torch.equal(tiny.outputs(model), tiny.outputs(tiny.build(name)))
    assert type(processor) is type(samples.processor(name))


def test_weights_of_another_precision_become_fp32(tmp_path):
    path = samples.save(tiny.build("clip").to(torch.bfloat16), samples.processor("clip"), tmp_path / "half")
    model, _ = load_dense(str(path))
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_from_scratch_needs_no_weights(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no weights at '.*clip': .*; for random ones set from_scratch"):
        load_dense(str(checkpoint))
    torch.manual_seed(0)
    model, processor = load_dense(str(checkpoint), from_scratch=True)
    assert processor is not None
    assert not model.training
    assert torch.isfinite(tiny.outputs(model)).all()
    assert not torch.equal(tiny.outputs(model), tiny.outputs(tiny.build("clip")))


BLIPS = [name for name in tiny.MODELS if name.startswith("blip")]


@pytest.mark.parametrize("name", BLIPS)
def test_a_blip_is_of_the_class_that_its_config_names_and_can_be_cut(tmp_path, name):
    path = samples.directory(tmp_path / name, name)
    built = [build_dense(str(path)), *(load_dense(str(path), from_scratch)[0] for from_scratch in (False, True))]
    for model in built:
        assert type(model) is type(tiny.build(name))
        assert find_sites(model) == find_sites(tiny.build(name))
        assert not model.training


def test_another_class_of_transformers(tmp_path):
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**tiny.TEXT)).eval()
    loaded, _ = load_dense(str(samples.save(model, samples.tokenizer(), tmp_path / "masked")))
    assert type(loaded) is BertForMaskedLM
    ids = torch.arange(2, 12)[None]
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def edit(checkpoint, **changes):
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("architectures", [["BlipModel"], [], None, ["BlipForVqa"]])
def test_a_blip_of_no_task_is_refused_with_the_names_of_those_there_are(tmp_path, architectures):
    path = samples.directory(tmp_path / "blip", "blip_vqa")
    edit(path, architectures=architectures)
    name = (architectures or [""])[0]
    text = (
        rf"blip' is a BLIP of architecture '{name}'; 'architectures' in its config\.json has to name the task class "
        r"that its weights are of: one of \['BlipForConditionalGeneration', 'BlipForImageTextRetrieval', "
        r"'BlipForQuestionAnswering'\]"
    )
    for load in (load_dense, build_dense, lambda place: load_dense(place, from_scratch=True)):
        with pytest.raises(ValueError, match=text):
            load(str(path))


def test_a_blip_for_vqa_with_two_widths_is_refused(tmp_path):
    path = samples.directory(tmp_path / "blip", "blip_captioning")
    edit(path, architectures=["BlipForQuestionAnswering"])
    text = (
        r"blip' has images of width 32 and text of width 24; BlipForQuestionAnswering of transformers needs one width"
    )
    for load in (load_dense, build_dense):
        with pytest.raises(ValueError, match=text):
            load(str(path))


def test_weights_of_another_blip_are_refused(tmp_path):
    path = samples.directory(tmp_path / "blip", "blip_captioning")
    edit(path, architectures=["BlipForImageTextRetrieval"])
    with pytest.raises(ValueError, match=r"blip' lacks weights \['itm_head\.bias', 'itm_head\.weight', 'text_encoder"):
        load_dense(str(path))


@pytest.mark.parametrize("name", ["blip_vqa", "blip_captioning", "blip_retrieval"])
def test_what_older_checkpoints_hold_beside_the_weights_is_no_matter(tmp_path, name):
    path = samples.directory(tmp_path / "blip", name)

    def add(weights):
        for tower in {key.partition("embeddings.word")[0] for key in weights if "embeddings.word" in key}:
            weights[f"{tower}embeddings.position_ids"] = torch.arange(12)[None]
            if "decoder" in tower:
                head = "text_decoder.cls.predictions"
                weights[f"{head}.decoder.weight"] = weights[f"{tower}embeddings.word_embeddings.weight"].clone()
                weights[f"{head}.decoder.bias"] = weights[f"{head}.bias"].clone()

    tamper(path, add)
    model, _ = load_dense(str(path))
    assert torch.equal(tiny.outputs(model), tiny.outputs(tiny.build(name)))
    decoder = getattr(model, "text_decoder", None)
    assert decoder is None or decoder.get_output_embeddings().weight is decoder.get_input_embeddings().weight


def test_a_blip_without_a_weight_is_refused(tmp_path):
    path = samples.directory(tmp_path / "blip", "blip_captioning")
    name = "text_decoder.bert.embeddings.word_embeddings.weight"
    tamper(path, lambda weights: weights.pop(name))
    with pytest.raises(ValueError, match=rf"blip' lacks weights \['{name}', 'text_decoder\.cls"):
        load_dense(str(path))


def test_a_config_that_transformers_does_not_know(checkpoint):
    edit(checkpoint, model_type="blop")
    for load in (load_dense, build_dense):
        with pytest.raises(ValueError, match=r"config\.json in '.*clip' cannot be used: .*`blop`"):
            load(str(checkpoint))


def test_missing_paths(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no checkpoint directory at '.*/nowhere'; give a directory with config"
    ):
        load_dense(str(tmp_path / "nowhere"))
    for name in ("./nowhere", "a/b/c", "~/nowhere"):
        with pytest.raises(FileNotFoundError, match=f"no checkpoint directory at '{name}'"):
            load_dense(name)
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileNotFoundError, match="no checkpoint directory at"):
        load_dense(str(tmp_path / "file"))
    with pytest.raises(
        FileNotFoundError, match=r"no config\.json in '.*' \(it holds \['file'\]\); is it a Hugging Face"
    ):
        load_dense(str(tmp_path))


def test_missing_processor(checkpoint):
    for file in checkpoint.glob("*token*"):
        file.unlink()
    (checkpoint / "processor_config.json").unlink()
    with pytest.raises(ValueError, match=r"no processor at '.*clip': "):
        load_dense(str(checkpoint))


NAME = "vision_model.encoder.layers.0.mlp.fc1.weight"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda weights: weights.pop(NAME), rf"lacks weights \['{NAME}'\]; is it complete, and does its config\.json"),
        (
            lambda weights: [weights.pop(name) for name in list(weights) if "text_model" in name],
            r"lacks weights \['text_model\.embeddings.*'\] and \d+ more; is it complete",
        ),
        (lambda weights: weights.update(extra=torch.ones(1)), r"has unexpected weights \['extra'\]; is it complete"),
        (
            lambda weights: weights.update({NAME: torch.ones(47, 32)}),
            rf"has other shapes for weights \['{NAME}'\]; is it complete, and does its config\.json belong to it",
        ),
    ],
)
def test_weights_that_do_not_fit(checkpoint, change, text):
    tamper(checkpoint, change)
    with pytest.raises(ValueError, match=rf"checkpoint '.*clip' {text}"):
        load_dense(str(checkpoint))


def test_truncated_weights(checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"no weights at '.*clip': .*for random ones set from_scratch"):
        load_dense(str(checkpoint))


def test_timm_models():
    model, processor = load_dense("timm/test_vit", from_scratch=True)
    assert processor is None
    assert not model.training
    assert len(find_sites(model)) == 12
    with pytest.raises(
        ValueError, match="timm has no model 'vit_tinny_patch16_224'; did you mean 'vit_tiny_patch16_224'"
    ):
        load_dense("timm/vit_tinny_patch16_224")


def test_timm_weights_that_cannot_be_had(monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host\nsecond line")

    monkeypatch.setattr(timm, "create_model", offline)
    text = "no weights for timm model 'test_vit': no route to host; for random ones set from_scratch"
    with pytest.raises(ValueError, match=text):
        load_dense("timm/test_vit")


@MODELS
def test_describe_and_build_again(tmp_path, name):
    model = samples.model(name)
    (tmp_path / "config.json").write_text(json.dumps(describe(model)))
    built = build_dense(str(tmp_path))
    assert type(built) is type(model)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in built.state_dict().items()} == shapes


def test_build_dense_by_name_and_message(checkpoint, tmp_path):
    assert len(find_sites(build_dense("timm/test_vit"))) == 12
    assert not build_dense(str(checkpoint)).training
    with pytest.raises(ValueError, match="timm has no model 'test_vitt'"):
        build_dense("timm/test_vitt")
    with pytest.raises(FileNotFoundError, match=r"no config\.json in '.*'"):
        build_dense(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no checkpoint directory at"):
        build_dense(str(tmp_path / "nowhere"))


def test_describe_does_not_tell_where_it_was_loaded_from(checkpoint):
    model, _ = load_dense(str(checkpoint))
    assert "_name_or_path" in model.config.to_json_string(use_diff=False)
    assert "_name_or_path" not in json.dumps(describe(model))


def test_describe_a_cut_model_describes_the_dense_one():
    model = tiny.build("clip")
    before = describe(model)
    sites = find_sites(model)
    shrink_(model, sites, Plan.of({site.name: [0] for site in sites}, sites))
    assert describe(model) == before


def test_describe_messages():
    with pytest.raises(
        ValueError, match=r"cannot describe a Linear: it is neither from transformers nor made by timm\.cr"
    ):
        describe(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="cannot describe a VisionTransformer"):
        describe(tiny.timm_vit())


@MODELS
def test_example_inputs_are_one_sample_of_what_the_model_takes(name):
    model = tiny.build(name)
    found = example_inputs(model)
    expected = tiny.inputs(model, batch=1)
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in expected.items()}
    assert {value.device.type for value in found.values()} == {"meta"}


def test_text_length():
    assert example_inputs(tiny.build("clip"), text_length=7)["input_ids"].shape == (1, 7)
    long = BertModel(BertConfig(**tiny.TEXT | {"max_position_embeddings": 700}))
    assert example_inputs(long)["input_ids"].shape == (1, 512)


def test_an_answer_of_a_few_tokens_whatever_the_question():
    model = tiny.build("blip_vqa")
    assert example_inputs(model, 7)["decoder_input_ids"].shape == example_inputs(model)["decoder_input_ids"].shape
    assert example_inputs(model, 7)["input_ids"].shape == (1, 7)


def test_features_of_blip_are_those_of_its_contrastive_score():
    model = tiny.build("blip_retrieval")
    inputs = tiny.inputs(model) | {"attention_mask": (torch.arange(12) < torch.tensor([[12], [7], [3]])).long()}
    with torch.no_grad():
        expected = model(**inputs, use_itm_head=False).itm_score
        images = nn.functional.normalize(image_features(model, inputs["pixel_values"]), dim=-1)
        texts = text_features(model, inputs["input_ids"], inputs["attention_mask"])
        assert (images.shape, texts.shape) == ((3, 16), (3, 16))
        torch.testing.assert_close(images @ nn.functional.normalize(texts, dim=-1).t(), expected)
        everything = text_features(model, inputs["input_ids"], torch.ones_like(inputs["input_ids"]))
        torch.testing.assert_close(text_features(model, inputs["input_ids"]), everything)


@pytest.mark.parametrize("name", ["clip", "siglip", "dual_encoder"])
def test_features_are_those_of_the_model(name):
    model, inputs = tiny.build(name), tiny.inputs(tiny.build(name))
    with torch.no_grad():
        result = model(**inputs)
        images = image_features(model, inputs["pixel_values"])
        texts = text_features(model, inputs["input_ids"], torch.ones_like(inputs["input_ids"]))
    normal = nn.functional.normalize
    torch.testing.assert_close(normal(images, dim=-1), normal(result.image_embeds, dim=-1))
    torch.testing.assert_close(normal(texts, dim=-1), normal(result.text_embeds, dim=-1))
