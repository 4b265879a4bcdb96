"""Complete model directories of tiny models, made in code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import BlipImageProcessor, BlipProcessor, CLIPImageProcessor, CLIPProcessor, PreTrainedTokenizerFast

from tests import tiny
from upop.export import save


def tokenizer() -> Any:
    """Fifty words, of which 0 starts and 1 ends and pads."""
    words = {"<start>": 0, "<end>": 1} | {f"w{number}": number for number in range(2, 50)}
    core = Tokenizer(models.WordLevel(words, unk_token="<end>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = {"bos_token": "<start>", "eos_token": "<end>", "pad_token": "<end>", "unk_token": "<end>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=12, **marks)


def image_processor() -> Any:
    return CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


def processor(name: str) -> Any:
    """What feeds the tiny model of this name."""
    if name.startswith("timm"):
        return None
    if name == "bert":
        return tokenizer()
    if name in ("vit", "deit"):
        return image_processor()
    if name.startswith("blip"):
        return BlipProcessor(BlipImageProcessor(size={"height": 16, "width": 16}), tokenizer())
    return CLIPProcessor(image_processor(), tokenizer())


def model(name: str) -> nn.Module:
    """The tiny model of this name; timm's is one that ``timm.create_model`` can make again."""
    if name != "timm_vit":
        return tiny.build(name)
    torch.manual_seed(0)
    return timm.create_model("test_vit", img_size=32, num_classes=5).eval()


def directory(path: Path, name: str = "clip") -> Path:
    """A dense checkpoint."""
    return save(model(name), processor(name), path)
