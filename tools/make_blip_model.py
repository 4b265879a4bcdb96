"""Write the definition of a small BLIP: configuration, tokenizer for the words of a corpus, image processor.

    python tools/make_blip_model.py vqa configs/models/shapes_blip_vqa --shapes --initializer-range 0.08
    python tools/make_blip_model.py captioning runs/models/mine --texts flickr8k_train.json --image-size 128

Only definitions, no weights: a run that starts from this directory trains from scratch. `--texts` takes JSON files of
captions, questions, answers or statements (`.gz` too); every string that stands under one of those keys counts.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from tokenizers.trainers import WordPieceTrainer
from transformers import (
    BlipConfig,
    BlipImageProcessor,
    BlipProcessor,
    BlipTextConfig,
    BlipVisionConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from upop.data import captions, questions, statements
from upop.families.blip_nlvr import BlipNlvrConfig

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
DECODER, ENCODER = "[DEC]", "[ENC]"
"""First token of what the decoder writes and of texts that meet an image; the last two numbers, as in BLIP."""
KEYS = {"caption", "captions", "question", "answer", "multiple_choice_answer", "sentence", "raw"}
PROMPT = "a picture of"
ARCHITECTURES = {
    "retrieval": "BlipForImageTextRetrieval",
    "vqa": "BlipForQuestionAnswering",
    "captioning": "BlipForConditionalGeneration",
    "nlvr": "BlipForVisualReasoning",
}


def strings(value: Any, wanted: bool = False) -> Iterator[str]:  # noqa: ANN401 (anything that JSON can hold)
    """Every string under one of :data:`KEYS`, however deep."""
    if isinstance(value, str) and wanted:
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from strings(inner, key in KEYS)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner, wanted)


def read(path: Path) -> Any:  # noqa: ANN401
    """A JSON file, or a file with one JSON value per line."""
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return [json.loads(line) for line in text.splitlines() if line.strip()]


def shapes_words() -> list[str]:
    """Every word that the built-in world is described with."""
    return sorted({*captions.vocabulary(), *questions.vocabulary(), *statements.vocabulary(), *PROMPT.split()})


def tokenizer(texts: Iterable[str], vocabulary: int, length: int) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer as BERT's, of at most ``vocabulary`` tokens."""
    model = Tokenizer(WordPiece(unk_token="[UNK]"))
    model.normalizer = normalizers.BertNormalizer(lowercase=True)
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = WordPieceTrainer(
        vocab_size=vocabulary - 2, min_frequency=1, special_tokens=list(SPECIAL), show_progress=False
    )
    model.train_from_iterator(texts, trainer)
    model.add_special_tokens([DECODER, ENCODER])
    first, last = model.token_to_id("[CLS]"), model.token_to_id("[SEP]")
    model.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", first), ("[SEP]", last)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", bos_token=DECODER, additional_special_tokens=[ENCODER], model_max_length=length,
        padding_side="right",
    )  # fmt: skip


def config(words: PreTrainedTokenizerFast, options: argparse.Namespace) -> PretrainedConfig:
    """The configuration of the model."""
    shared = {
        "hidden_size": options.width, "intermediate_size": 4 * options.width, "num_attention_heads": options.heads,
        "initializer_range": options.initializer_range,
    }  # fmt: skip
    vision = BlipVisionConfig(
        **shared, num_hidden_layers=options.vision_layers, image_size=options.image_size,
        patch_size=options.patch_size, attention_dropout=0.0,
    )  # fmt: skip
    text = BlipTextConfig(
        **shared, num_hidden_layers=options.text_layers, vocab_size=len(words), encoder_hidden_size=options.width,
        max_position_embeddings=options.length, bos_token_id=words.bos_token_id, sep_token_id=words.sep_token_id,
        eos_token_id=words.sep_token_id, pad_token_id=words.pad_token_id, projection_dim=options.width,
    )  # fmt: skip
    made = {
        "text_config": text.to_diff_dict(), "vision_config": vision.to_diff_dict(),
        "architectures": [ARCHITECTURES[options.task]],
    }  # fmt: skip
    if options.task == "nlvr":
        return BlipNlvrConfig(**made, drop_path=0.0, initializer_range=options.initializer_range)
    return BlipConfig(
        **made, projection_dim=options.width, image_text_hidden_size=options.width,
        initializer_range=options.initializer_range,
    )  # fmt: skip


def write_model(options: argparse.Namespace) -> None:
    texts = shapes_words() if options.shapes else [text for path in options.texts for text in strings(read(path))]
    words = tokenizer([*texts, PROMPT], options.vocabulary, options.length)
    side = {"height": options.image_size, "width": options.image_size}
    images = BlipImageProcessor(size=side)
    BlipProcessor(image_processor=images, tokenizer=words).save_pretrained(options.directory)
    config(words, options).save_pretrained(options.directory)
    print(f"{options.directory}: {ARCHITECTURES[options.task]}, {len(words)} tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(ARCHITECTURES))
    parser.add_argument("directory", type=Path)
    corpus = parser.add_mutually_exclusive_group(required=True)
    corpus.add_argument("--shapes", action="store_true", help="the words of the built-in world")
    corpus.add_argument("--texts", type=Path, nargs="+", help="JSON files to take the words from")
    parser.add_argument("--vocabulary", type=int, default=4000, help="tokens at most")
    parser.add_argument("--length", type=int, default=40, help="positions of a text")
    parser.add_argument("--image-size", type=int, default=64, help="pixels along a side")
    parser.add_argument("--patch-size", type=int, default=16, help="pixels along a side")
    parser.add_argument(
        "--width", type=int, default=128, help="hidden size of both towers; the MLPs are 4 times as wide"
    )
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument(
        "--initializer-range",
        type=float,
        default=0.02,
        help="standard deviation of new weights; a narrow model that starts from them learns far sooner with about "
        "1 / sqrt(width)",
    )
    parser.add_argument("--vision-layers", type=int, default=4)
    parser.add_argument("--text-layers", type=int, default=3)
    write_model(parser.parse_args())


if __name__ == "__main__":
    main()
