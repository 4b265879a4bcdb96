import os

import pytest
import torch

import upop
from tests import tiny
from tests.export.importing import authors
from tests.export.importing.test_clip import processor as clip_processor
from tests.export.test_importing import bert, processor, refused
from tests.families import open_clip_samples as samples
from tests.families.test_salesforce import HEADS, model
from upop.export import import_checkpoint, save
from upop.export.importing import Imported
from upop.families.salesforce import to_salesforce


@pytest.fixture
def like(tmp_path):
    return save(tiny.build("blip_vqa", seed=9), processor(bert()), tmp_path / "like")


def compressed(path):
    torch.save({"model": authors.cut_blip(to_salesforce(model("vqa").state_dict()), HEADS)}, path)
    return str(path)


def test_lines_say_everything(tmp_path):
    imported = Imported(tmp_path / "out", "retrieval", 7, 0.05, list("abcde"), ["first", "second"])
    assert imported.lines() == [
        "took 7 tensors, of retrieval",
        "dropped ['a', 'b', 'c', 'd', ...] (5)",
        "its temperature is 0.0500: set model.init_args.temperature to that",
        "first",
        "second",
        f"wrote {tmp_path / 'out'}",
    ]
    assert Imported(tmp_path, "clip", 3).lines() == ["took 3 tensors, of clip", f"wrote {tmp_path}"]


def test_a_compressed_directory_is_like_any_other(like, tmp_path):
    """It has a model card and the code that loads it elsewhere, and is written again as it is."""
    import_checkpoint(compressed(tmp_path / "m.pth"), str(like), tmp_path / "out")
    names = set(os.listdir(tmp_path / "out"))
    assert {"README.md", "modeling_upop.py", "config.json", "model.safetensors", "tokenizer.json"} <= names
    loaded, fitting = upop.load(tmp_path / "out")
    assert fitting.tokenizer("w10").input_ids == [49, 10, 3]
    assert not any(parameter.is_meta for parameter in loaded.parameters())


@pytest.mark.parametrize("part", [0.5, 0.9])
def test_the_file_is_only_read(part, like, tmp_path):
    """Weights are mapped from the disk, and queries are rescaled."""
    state = authors.cut_clip(samples.theirs().state_dict(), samples.HEADS, part)
    torch.save(state, tmp_path / "m.pt")
    before = (tmp_path / "m.pt").read_bytes()
    save(upop_clip(), clip_processor(), tmp_path / "clip")
    import_checkpoint(tmp_path / "m.pt", str(tmp_path / "clip"), tmp_path / "out")
    assert (tmp_path / "m.pt").read_bytes() == before


def upop_clip():
    from transformers import CLIPModel

    return CLIPModel(samples.config())


def test_a_failure_while_writing_leaves_nothing(like, tmp_path, monkeypatch):
    file = compressed(tmp_path / "m.pth")

    def fail(*_args, **_options):
        raise OSError("no space left on device")

    monkeypatch.setattr("upop.export.directory.save_file", fail)
    refused(tmp_path, "no space left on device", file, like, OSError)


def test_contents_of_another_kind(like, tmp_path):
    torch.save({"blocks.0.attn.qkv.weight": torch.zeros(1), "head.bias": torch.zeros(1)}, tmp_path / "deit.pth")
    text = (
        r"deit\.pth': these are the weights of neither a BLIP nor a CLIP: they are named "
        r"\['blocks\.0\.attn\.qkv\.weight', 'head\.bias'\]; a BLIP's begin with 'visual_encoder\.' and with 'text_"
    )
    refused(tmp_path, text, tmp_path / "deit.pth", like)


def test_a_clip_for_a_blip_and_the_other_way_round(like, tmp_path):
    torch.save(samples.theirs().state_dict(), tmp_path / "clip.pt")
    refused(
        tmp_path, r"clip\.pt' is a CLIP, --like '.*' is a BlipForQuestionAnswering; give", tmp_path / "clip.pt", like
    )
    save(upop_clip(), clip_processor(), tmp_path / "clip")
    file = compressed(tmp_path / "m.pth")
    refused(tmp_path, r"--like '.*' is a CLIPModel, which is no BLIP; give a directory", file, tmp_path / "clip")


def test_a_compressed_file_of_another_task(like, tmp_path):
    torch.save(authors.cut_blip(to_salesforce(model("retrieval").state_dict()), HEADS), tmp_path / "m.pth")
    refused(tmp_path, r"is of retrieval, --like '.*' is a BlipForQuestionAnswering, of vqa;", tmp_path / "m.pth", like)


def test_a_compressed_file_cut_short(like, tmp_path):
    file = compressed(tmp_path / "m.pth")
    whole = (tmp_path / "m.pth").read_bytes()
    (tmp_path / "m.pth").write_bytes(whole[: len(whole) * 2 // 3])
    refused(tmp_path, r"m\.pth' is no state dict that can be read .*, and copy it again if it is that", file, like)
