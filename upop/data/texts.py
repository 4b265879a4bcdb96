"""Texts as token numbers: tokenised once, kept flat, padded a batch at a time.

All texts of a split are tokenised before the first batch and kept in one flat tensor: fast, small (a caption costs a
few dozen bytes) and safe to share with worker processes.

Shapes: ``B`` texts of a batch, ``L`` tokens of a padded text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MULTIPLE = 8
"""Texts of a training batch are padded to a multiple of this many tokens."""
MOST_TOKENS = 10_000
_CHUNK = 4096
_MARKS = re.compile(r"[.!\"()*#:;~]")


def clean_caption(caption: str, max_words: int = 50) -> str:
    """A caption as BLIP prepares it: lower case, without punctuation, at most ``max_words`` words.

    >>> clean_caption('Two dogs  (brown) play. "Fetch!"')
    'two dogs brown play fetch'
    """
    return " ".join(_MARKS.sub(" ", caption.lower()).split()[:max_words])


def clean_question(question: str, max_words: int = 50) -> str:
    """A question as BLIP prepares it: lower case, no punctuation but question marks, at most ``max_words`` words.

    Unlike in a caption, what stood on both sides of a mark becomes one word.

    >>> clean_question('Is this the #1 "U.S.A." team? ')
    'is this the 1 usa team?'
    """
    return " ".join(_MARKS.sub("", question.lower()).split()[:max_words])


def full_length(processor: Any) -> bool:  # noqa: ANN401 (transformers has no common type)
    """Whether the model was trained on texts of one length, with its padding seen as text (SigLIP)."""
    names = (type(processor).__name__, type(processor.tokenizer).__name__)
    return "attention_mask" not in processor.tokenizer.model_input_names or any("siglip" in n.lower() for n in names)


def text_limit(processor: Any, text_length: int | None) -> int:  # noqa: ANN401
    """Tokens that a text may have, the special ones included.

    Args:
        processor: The model's processor.
        text_length: What the user set; None takes the tokenizer's own limit.

    Raises:
        ValueError: If the tokenizer has no limit and none is set, or the one set is out of range.
    """
    limit = int(processor.tokenizer.model_max_length)
    if text_length is None:
        if limit > MOST_TOKENS:
            raise ValueError("the tokenizer states no longest text; set text_length to the model's number of positions")
        return limit
    if not 3 <= text_length <= limit:
        raise ValueError(f"text_length is {text_length} tokens; the tokenizer allows 3 to {limit}")
    return text_length


class Texts:
    """Tokenised texts.

    Args:
        texts: What to tokenise.
        processor: The model's processor.
        length: Longest text in tokens; longer ones are cut by the tokenizer, which keeps its end token.
    """

    def __init__(self, texts: Sequence[str], processor: Any, length: int) -> None:  # noqa: ANN401
        tokenizer = processor.tokenizer
        if tokenizer.pad_token_id is None:
            raise ValueError("the tokenizer has no pad token; set one (tokenizer.pad_token) and save it with the model")
        self.length, self.fixed = length, full_length(processor)
        self.pad, self.left = int(tokenizer.pad_token_id), tokenizer.padding_side == "left"
        ids: list[Tensor] = []
        sizes: list[int] = []
        for start in range(0, len(texts), _CHUNK):
            chunk = list(texts[start : start + _CHUNK])
            rows = tokenizer(chunk, truncation=True, max_length=length)["input_ids"]
            sizes += [len(row) for row in rows]
            ids.append(torch.tensor([token for row in rows for token in row], dtype=torch.int32))
        self.ids = torch.cat(ids) if ids else torch.zeros(0, dtype=torch.int32)
        self.ends = torch.tensor(sizes, dtype=torch.long).cumsum(0)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> Tensor:
        """Tokens of one text, not padded."""
        start = int(self.ends[number - 1]) if number else 0
        return self.ids[start : int(self.ends[number])]

    def batch(self, rows: Sequence[Tensor], full: bool) -> dict[str, Tensor]:
        """Pad texts to one length.

        Args:
            rows: Tokens per text.
            full: Pad to the longest text allowed; else to the longest in the batch, up to the next multiple of eight.

        Returns:
            ``input_ids`` and ``attention_mask``, ``(B, L)`` each. Where the model sees its padding as text, the mask is
            1 everywhere.
        """
        longest = max(len(row) for row in rows)
        width = self.length if full or self.fixed else min(self.length, -(-longest // MULTIPLE) * MULTIPLE)
        ids = torch.full((len(rows), width), self.pad, dtype=torch.long)
        mask = torch.full((len(rows), width), int(self.fixed), dtype=torch.long)
        for number, row in enumerate(rows):
            place = slice(width - len(row), width) if self.left else slice(0, len(row))
            ids[number, place], mask[number, place] = row.long(), 1
        return {"input_ids": ids, "attention_mask": mask}
