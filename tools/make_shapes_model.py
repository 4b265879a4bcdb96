"""Write the definition of the small CLIP for the world of shapes: configuration, word-level tokenizer, image processor.

    python tools/make_shapes_model.py configs/models/shapes

Only definitions, no weights: a run that starts from this directory trains from scratch. Run it again after a change of
`upop.data.captions.vocabulary`, and commit what it writes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import CLIPConfig, CLIPImageProcessor, CLIPProcessor, PreTrainedTokenizerFast

from upop.data.shapes import vocabulary

PAD, START, UNKNOWN, END = "<pad>", "<start>", "<unknown>", "<end>"
SPECIAL = (PAD, START, UNKNOWN, END)  # the end must not be number 2: transformers' CLIP pools differently there
LENGTH = 32
IMAGE_SIZE = 64
PATCH_SIZE = 16


def tokenizer() -> PreTrainedTokenizerFast:
    words = {word: number for number, word in enumerate((*SPECIAL, *vocabulary()))}
    model = Tokenizer(WordLevel(words, unk_token=UNKNOWN))
    model.normalizer = normalizers.Lowercase()
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, words[START]), (END, words[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token=PAD, bos_token=START, unk_token=UNKNOWN, eos_token=END,
        model_max_length=LENGTH, padding_side="right",
    )  # fmt: skip


def config(words: PreTrainedTokenizerFast) -> CLIPConfig:
    tower = {"num_attention_heads": 4, "hidden_size": 128, "intermediate_size": 512, "projection_dim": 128}
    text = {
        "vocab_size": len(words), "max_position_embeddings": LENGTH, "num_hidden_layers": 3,
        "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id,
    }  # fmt: skip
    vision = {"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE, "num_hidden_layers": 4}
    return CLIPConfig(
        text_config={**tower, **text},
        vision_config={**tower, **vision},
        projection_dim=128,
        architectures=["CLIPModel"],
    )


def write_model(directory: Path) -> None:
    words = tokenizer()
    images = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5],
    )  # fmt: skip
    CLIPProcessor(image_processor=images, tokenizer=words).save_pretrained(directory)
    config(words).save_pretrained(directory)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    write_model(parser.parse_args().directory)
