import json
import os
import pickle
import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertTokenizer, BlipImageProcessor, BlipProcessor, PreTrainedTokenizerFast

import upop
from tests import tiny
from tests.export import samples
from tests.families.blip_nlvr import reference
from tests.families.blip_nlvr import samples as nlvr
from tests.families.test_salesforce import HEADS, MORE, close, model
from upop.export import save
from upop.export.importing import import_checkpoint, read
from upop.families.salesforce import leftovers, to_salesforce

LIKE = {"retrieval": "retrieval", "vqa": "vqa", "captioning": "captioning", "nlvr": "retrieval"}
TASKS = pytest.mark.parametrize("task", LIKE)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SENTENCE = "w10 w11 w47"
ONLY_TRAINING = dict.fromkeys(MORE, torch.zeros(2))


def bert(words=48):
    """BERT's tokenizer, with as many tokens before ``[DEC]`` and ``[ENC]`` as the tiny models expect."""
    vocabulary = SPECIAL + [f"w{number}" for number in range(len(SPECIAL), words)]
    return BertTokenizer(vocab={word: number for number, word in enumerate(vocabulary)})


def processor(tokenizer):
    return BlipProcessor(BlipImageProcessor(size={"height": 16, "width": 16}), tokenizer)


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """A model directory for each task, with other weights than the checkpoints have, and Hugging Face's settings."""
    root = tmp_path_factory.mktemp("like")
    for task in LIKE:
        save(tiny.build(f"blip_{task}", seed=9), processor(bert()), root / task)
    save(samples.model("clip"), samples.processor("clip"), root / "clip")
    return root


def trained(task, **changes):
    """A model as the authors' code would have trained it."""
    if task != "nlvr":
        return model(task)
    return nlvr.model(**{"text_config": tiny.TEXT | tiny.IDS, "merge_from": 2} | changes)


def checkpoint(path, made, change=None, **options):
    """A file as the authors' code saves it."""
    state = to_salesforce(made.state_dict())
    if change:
        change(state)
    torch.save({"model": state, "epoch": 3, "config": {"vit": "base"}}, path, **options)
    return str(path)


@TASKS
def test_the_directory_holds_what_the_file_holds(task, directories, tmp_path):
    made = trained(task)
    file = checkpoint(tmp_path / "model.pth", made, lambda state: state.update(ONLY_TRAINING))
    imported = import_checkpoint(file, str(directories / LIKE[task]), tmp_path / "out")
    loaded, _ = upop.load(tmp_path / "out")
    assert type(loaded).__name__ == type(made).__name__
    found, expected = loaded.state_dict(), made.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    torch.testing.assert_close(tiny.outputs(loaded), tiny.outputs(made), rtol=1e-4, atol=1e-5)
    assert (imported.task, imported.tensors, imported.dropped) == (task, len(expected), list(MORE))
    assert sorted(os.listdir(tmp_path)) == ["model.pth", "out"]


def test_nlvr_is_the_reference_from_file_to_model(directories, tmp_path):
    made, inputs = trained("nlvr"), nlvr.inputs()
    file = checkpoint(tmp_path / "model.pth", made)
    import_checkpoint(file, str(directories / "captioning"), tmp_path / "out")
    expected = reference.reasoning(
        read(file), inputs["pixel_values"], inputs["input_ids"], HEADS, inputs["attention_mask"]
    )
    with torch.no_grad():
        close(upop.load(tmp_path / "out")[0](**inputs).logits, expected)


@TASKS
def test_settings_are_those_of_the_authors(task, directories, tmp_path):
    before = json.loads((directories / LIKE[task] / "config.json").read_text())
    assert before["vision_config"]["layer_norm_eps"] == 1e-5
    imported = import_checkpoint(
        checkpoint(tmp_path / "model.pth", trained(task)), str(directories / LIKE[task]), tmp_path / "out"
    )
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["vision_config"]["layer_norm_eps"] == 1e-6
    text = config["text_config"]
    assert (text["hidden_dropout_prob"], text["attention_probs_dropout_prob"], text["layer_norm_eps"]) == (
        0.1,
        0.1,
        1e-12,
    )
    assert "set vision_config.layer_norm_eps to 1e-06 (was 1e-05), as it was trained" in imported.notes
    assert "vision_config says 4 heads of 8" in imported.notes or task == "vqa"
    assert "text_config says 3 heads of 8" in imported.notes
    lines = imported.lines()
    assert lines[0] == f"took {imported.tensors} tensors, of {task}"
    assert lines[-1] == f"wrote {tmp_path / 'out'}"


@pytest.mark.parametrize("kind", ["bert", "fast"])
@pytest.mark.parametrize(
    ("task", "start", "knows"),
    [("retrieval", "[CLS]", True), ("vqa", "[ENC]", True), ("captioning", "[CLS]", False), ("nlvr", "[ENC]", True)],
)
def test_the_tokenizer_begins_texts_as_in_training(kind, task, start, knows, directories, tmp_path):
    like = directories / LIKE[task]
    if kind == "fast":
        marks = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
        words = PreTrainedTokenizerFast(tokenizer_object=bert().backend_tokenizer, **marks)
        like = save(tiny.build(f"blip_{LIKE[task]}"), processor(words), tmp_path / "like")
    import_checkpoint(checkpoint(tmp_path / "model.pth", trained(task)), str(like), tmp_path / "out")
    loaded = upop.load(tmp_path / "out")[1]
    tokenizer = loaded.tokenizer
    ids = tokenizer([SENTENCE, "w10"], padding=True).input_ids
    assert tokenizer.convert_ids_to_tokens(ids[0]) == [start, *SENTENCE.split(), "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(ids[1]) == [start, "w10", "[SEP]", "[PAD]", "[PAD]"]
    assert [tokenizer.decode(row, skip_special_tokens=True) for row in ids] == [SENTENCE, "w10"]
    assert tokenizer.decode([2, 10, 3], skip_special_tokens=True) == "w10", "[CLS] stays special"
    unknown = tokenizer.unk_token_id
    assert tokenizer.convert_tokens_to_ids(["[DEC]", "[ENC]"]) == ([48, 49] if knows else [unknown, unknown])
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["text_config"]["bos_token_id"] == (48 if knows else 0)
    assert tokenizer.bos_token == ("[DEC]" if knows else None)


def test_an_imported_directory_is_a_like_again(directories, tmp_path):
    file = checkpoint(tmp_path / "model.pth", trained("nlvr"))
    import_checkpoint(file, str(directories / "nlvr"), tmp_path / "first")
    imported = import_checkpoint(file, str(tmp_path / "first"), tmp_path / "second")
    assert not any(note.startswith("set ") for note in imported.notes)
    for name in sorted(os.listdir(tmp_path / "first")):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name
    ids = upop.load(tmp_path / "second")[1].tokenizer(SENTENCE).input_ids
    assert ids == [49, 10, 11, 47, 3]


@pytest.mark.parametrize("merge_from", [0, 1, 3])
def test_the_first_merging_layer_is_read_from_the_file(merge_from, directories, tmp_path):
    file = checkpoint(tmp_path / "model.pth", trained("nlvr", merge_from=merge_from))
    import_checkpoint(file, str(directories / "retrieval"), tmp_path / "out")
    assert upop.load(tmp_path / "out")[0].config.merge_from == merge_from


@pytest.mark.parametrize("equal", [True, False])
def test_an_output_layer_of_its_own_is_kept(equal, directories, tmp_path):
    made = trained("captioning")
    name = "text_decoder.cls.predictions.decoder.weight"

    def change(state):
        state[name] = state[name].clone() if equal else state[name] + 1

    file = checkpoint(tmp_path / "model.pth", made, change)
    imported = import_checkpoint(file, str(directories / "captioning"), tmp_path / "out")
    loaded = upop.load(tmp_path / "out")[0]
    words = loaded.text_decoder.bert.embeddings.word_embeddings.weight
    output = loaded.text_decoder.cls.predictions.decoder.weight
    assert torch.equal(words, read(file)["text_decoder.bert.embeddings.word_embeddings.weight"])
    assert torch.equal(output, read(file)[name])
    assert (output is words) == equal
    assert any(note.startswith("untied the decoder's output") for note in imported.notes) != equal


def larger(task):
    """A model for 24 instead of 16 pixels."""
    if task == "nlvr":
        return trained("nlvr", vision_config=tiny.VISION | {"image_size": 24})
    torch.manual_seed(0)
    vision = {"image_size": 24} | ({"hidden_size": 24} if task == "vqa" else {})
    return type(model(task))(tiny.blip_config(**vision)).eval()


@TASKS
@pytest.mark.parametrize("image_size", [24, 16, 40])
def test_another_image_size(task, image_size, directories, tmp_path):
    made = larger(task)
    file = checkpoint(tmp_path / "model.pth", made)
    imported = import_checkpoint(file, str(directories / LIKE[task]), tmp_path / "out", image_size)
    loaded, fitting = upop.load(tmp_path / "out")
    side = image_size // 8
    found = to_salesforce(loaded.state_dict())["visual_encoder.pos_embed"]
    own = to_salesforce(made.state_dict())["visual_encoder.pos_embed"]
    assert torch.equal(found[:, 0], own[:, 0])
    grid = own[0, 1:].T.reshape(1, -1, 3, 3)
    if image_size == 24:
        assert torch.equal(found, own)
    else:
        wanted = torch.nn.functional.interpolate(grid, (side, side), mode="bicubic")
        torch.testing.assert_close(found[0, 1:], wanted[0].flatten(1).T)
    note = f"interpolated the position embeddings from 24 to {image_size} pixels"
    assert (note in imported.notes) == (image_size != 24)
    assert loaded.config.vision_config.image_size == image_size
    image = Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8))
    assert fitting(images=image, return_tensors="pt")["pixel_values"].shape == (1, 3, image_size, image_size)


@TASKS
def test_image_sizes_that_differ_are_refused_unless_one_is_given(task, directories, tmp_path):
    file = checkpoint(tmp_path / "model.pth", larger(task))
    text = (
        rf"'{file}' is for images of 24 pixels, --like '.*' for 16; give --image-size 24 to take it as it is, or "
        "another to interpolate its position embeddings"
    )
    refused(tmp_path, text, file, directories / LIKE[task])
    for size in (0, -8, 20):
        text = f"--image-size is {size}; give a multiple of the patches, which are 8 pixels"
        refused(tmp_path, text, file, directories / LIKE[task], image_size=size)


def refused(tmp_path, text, file, like, error=ValueError, image_size=None):
    """Refused in one line, and nothing was written."""
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(error, match=text) as caught:
        import_checkpoint(file, str(like), tmp_path / "out", image_size)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_file_that_is_missing_or_empty(directories, tmp_path):
    text = rf"no file '{tmp_path}/none\.pth'; give a checkpoint, such as model_base_nlvr\.pth"
    refused(tmp_path, text, tmp_path / "none.pth", directories / "vqa", FileNotFoundError)
    refused(tmp_path, "no file '", tmp_path, directories / "vqa", FileNotFoundError)
    (tmp_path / "empty.pth").touch()
    refused(tmp_path, r"'.*empty\.pth' is empty; copy it again", tmp_path / "empty.pth", directories / "vqa")


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("form", ["pickle", "zip", "legacy"])
@pytest.mark.parametrize("where", ["whole", "entry"])
def test_nothing_is_executed(form, where, directories, tmp_path):
    trap = Malicious(tmp_path / "trap")
    content = trap if where == "whole" else {"model": trained("nlvr").state_dict(), "config": trap}
    path = tmp_path / "model.pth"
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    text = (
        r"is no state dict that can be read without executing what is in it, and nothing was executed; give what torch"
        if form == "pickle"
        else r"holds more than tensors: a _?io\.open, which was not executed; save the state dict alone \(torch\.save\("
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused(tmp_path, rf"'.*model\.pth' {text}", path, directories / "retrieval")
    assert not (tmp_path / "trap").exists()
    pickle.loads(pickle.dumps(trap)).close()
    assert (tmp_path / "trap").exists(), "the trap works"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([1, 2], r"holds a list; expected tensors by name, alone or under 'model' or 'state_dict'"),
        (torch.zeros(3), "holds a Tensor; expected tensors by name"),
        ({}, "holds an empty mapping; expected tensors by name"),
        ({"model": {}}, "holds an empty mapping; expected tensors by name"),
        ({"epoch": 3}, "holds a int under 'epoch'; expected tensors by name"),
        ({3: torch.zeros(1)}, "holds a Tensor under 3; expected tensors by name"),
        (
            {"model": {"layer1.weight": torch.zeros(1)}},
            r"model\.pth': these are the weights of neither a BLIP nor a CLIP: they are named \['layer1\.weight'\]; a",
        ),
        (
            {"model": {"visual_encoder.norm.bias": torch.zeros(1)}},
            r"model\.pth': these are not the weights of a BLIP: they are named \['visual_encoder\.norm\.bias'\]; a",
        ),
    ],
)
def test_contents_that_are_no_blip(content, text, directories, tmp_path):
    torch.save(content, tmp_path / "model.pth")
    refused(tmp_path, text, tmp_path / "model.pth", directories / "vqa")


@pytest.mark.parametrize(
    "content", [b"no checkpoint at all", b"PK\x03\x04 no archive", b"\x80\x02}q\x00.", bytes(range(256))]
)
def test_files_that_cannot_be_read(content, directories, tmp_path):
    (tmp_path / "model.pth").write_bytes(content)
    text = r"'.*model\.pth' (is no state dict that can be read without executing .*; give what torch\.save|holds a)"
    refused(tmp_path, text, tmp_path / "model.pth", directories / "vqa")


def test_a_file_that_is_cut_short(directories, tmp_path):
    file = checkpoint(tmp_path / "model.pth", trained("vqa"))
    whole = (tmp_path / "model.pth").read_bytes()
    (tmp_path / "model.pth").write_bytes(whole[: len(whole) // 2])
    text = r"'.*model\.pth' is no state dict that can be read .*, and copy it again if it is that"
    refused(tmp_path, text, file, directories / "vqa")


@pytest.mark.parametrize(
    ("task", "like", "text"),
    [
        (
            "vqa",
            "retrieval",
            r"is of vqa, --like '.*' is a BlipForImageTextRetrieval, of retrieval; give one of vqa, such",
        ),
        (
            "retrieval",
            "vqa",
            "is of retrieval, --like '.*' is a BlipForQuestionAnswering, of vqa; give one of retrieval,",
        ),
        (
            "captioning",
            "nlvr",
            "is of captioning, --like '.*' is a BlipForVisualReasoning, of nlvr; give one of caption",
        ),
        (
            "vqa",
            "clip",
            r"--like '.*' is a CLIPModel, which is no BLIP; give a directory or hub name of a BLIP, such as ",
        ),
        (
            "nlvr",
            "clip",
            "--like '.*' is a CLIPModel, which is no BLIP; give a directory or hub name of a BLIP, such as ",
        ),
    ],
)
def test_a_like_of_another_kind(task, like, text, directories, tmp_path):
    refused(tmp_path, text, checkpoint(tmp_path / "model.pth", trained(task)), directories / like)


def test_a_like_that_is_none(directories, tmp_path):
    file = checkpoint(tmp_path / "model.pth", trained("vqa"))
    refused(tmp_path, "no checkpoint directory at '/nowhere/at/all'", file, "/nowhere/at/all", FileNotFoundError)
    (tmp_path / "folder").mkdir()
    refused(tmp_path, r"no config\.json in '.*folder'", file, tmp_path / "folder", FileNotFoundError)
    save(tiny.build("blip_vqa"), None, tmp_path / "bare")
    refused(tmp_path, "no processor at --like '.*bare': ", file, tmp_path / "bare")
    save(tiny.build("blip_vqa"), bert(), tmp_path / "deaf")
    refused(tmp_path, "no processor at --like '.*deaf': ", file, tmp_path / "deaf")


def test_sizes_that_differ_are_named(directories, tmp_path):
    torch.manual_seed(0)
    wide = type(model("retrieval"))(tiny.blip_config(hidden_size=40))
    text = (
        r"'.*model\.pth' does not fit --like '.*': visual_encoder\.cls_token is \(1, 1, 40\) in the file, \(1, 1, 32\) "
        r"in the model; visual_encoder\.patch_embed\.proj\.weight is \(40, 3, 8, 8\) in the file, \(32, 3, 8, 8\) in "
        r"the model and \d+ more differ; give a --like of the same size"
    )
    refused(tmp_path, text, checkpoint(tmp_path / "model.pth", wide), directories / "retrieval")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda state: state.pop("itm_head.bias"),
            r"does not fit --like '.*': the file lacks \['itm_head\.bias'\]; give a --like of the same size, and a",
        ),
        (
            lambda state: state.pop("visual_encoder.pos_embed"),
            r"the file lacks \['visual_encoder\.pos_embed'\]; give a --like of the same size",
        ),
        (
            lambda state: state.update({"visual_encoder.blocks.2.norm1.bias": torch.zeros(32)}),
            r"the model has no place for \['visual_encoder\.blocks\.2\.norm1\.bias'\]; give a --like of the same size",
        ),
        (
            lambda state: state.update({"visual_encoder.pos_embed": torch.zeros(1, 6, 32)}),
            r"visual_encoder\.pos_embed is for 5 patches, which are no square",
        ),
    ],
)
def test_names_that_differ_are_named(change, text, directories, tmp_path):
    refused(tmp_path, text, checkpoint(tmp_path / "model.pth", trained("retrieval"), change), directories / "retrieval")


def test_the_tied_output_may_be_missing_from_the_file(directories, tmp_path):
    def change(state):
        del state["text_decoder.cls.predictions.decoder.weight"], state["text_decoder.cls.predictions.decoder.bias"]

    made = trained("vqa")
    import_checkpoint(checkpoint(tmp_path / "model.pth", made, change), str(directories / "vqa"), tmp_path / "out")
    torch.testing.assert_close(tiny.outputs(upop.load(tmp_path / "out")[0]), tiny.outputs(made), rtol=1e-4, atol=1e-5)


def test_a_tokenizer_of_another_size(directories, tmp_path):
    file = checkpoint(tmp_path / "model.pth", trained("vqa"))
    save(tiny.build("blip_vqa"), processor(bert(40)), tmp_path / "like")
    text = (
        r"\[DEC\] and \[ENC\] would be tokens 40 and 41 of the tokenizer of --like '.*'; the model expects 48 and 49, "
        "so give a --like with the tokenizer of BERT"
    )
    refused(tmp_path, text, file, tmp_path / "like")
    save(tiny.build("blip_vqa"), processor(samples.tokenizer()), tmp_path / "other")
    text = r"the tokenizer of --like '.*' has no \[CLS\] and \[SEP\]; BLIP's is BERT's"
    refused(tmp_path, text, file, tmp_path / "other")


def test_a_directory_that_exists_is_left_alone(directories, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").write_text("mine")
    file = checkpoint(tmp_path / "model.pth", trained("vqa"))
    text = rf"'{re.escape(str(tmp_path / 'out'))}' exists already; give a directory that does not"
    refused(tmp_path, text, file, directories / "vqa", FileExistsError)
    assert (tmp_path / "out/precious").read_text() == "mine"


def test_leftovers_are_shown_briefly(directories, tmp_path):
    file = checkpoint(tmp_path / "model.pth", trained("retrieval"), lambda state: state.update(ONLY_TRAINING))
    lines = import_checkpoint(file, str(directories / "retrieval"), tmp_path / "out").lines()
    assert lines[1].startswith("dropped ['visual_encoder_m.blocks.0.norm1.weight', ")
    assert lines[1].endswith(f"...] ({len(leftovers(ONLY_TRAINING))})")


def test_the_temperature_that_was_trained_is_shown(directories, tmp_path):
    file = checkpoint(
        tmp_path / "model.pth", trained("retrieval"), lambda state: state.update(temp=torch.tensor(0.0213))
    )
    lines = import_checkpoint(file, str(directories / "retrieval"), tmp_path / "out").lines()
    assert "its temperature is 0.0213: set model.init_args.temperature to that" in lines
