"""What the tests of the tasks run their tiny models with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Processor:
    """What is asked of a processor."""

    tokenizer: Any


class Numbers:
    """Every second number for the second rank, as an evaluation sampler shares them out."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        distributed = torch.distributed.is_initialized()
        rank = torch.distributed.get_rank() if distributed else 0
        return iter(range(rank, self.count, torch.distributed.get_world_size() if distributed else 1))

    def __len__(self) -> int:
        return len(list(iter(self)))


class LossAtTheEnd(Callback):
    """The loss of a batch in evaluation mode when the search ends, its masks still on."""

    def __init__(self, given: dict[str, Tensor]) -> None:
        self.given = given
        self.loss = torch.zeros(())

    @torch.no_grad()
    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        pl_module.eval()
        self.loss = pl_module.loss(self.given)
        pl_module.train()


def trainer(path: Path, *callbacks: Callback, **arguments: Any) -> Trainer:
    """One quiet epoch on the CPU, without validation, logger or checkpoints."""
    settings = {
        "accelerator": "cpu", "devices": 1, "max_epochs": 1, "limit_val_batches": 0, "logger": False,
        "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
        "use_distributed_sampler": False, "num_sanity_val_steps": 0,
    }  # fmt: skip
    return Trainer(callbacks=list(callbacks), default_root_dir=path, **(settings | arguments))


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, numbered as given; the second ends and pads, the third begins, as tiny BLIPs expect.

    ``words`` begin with ``[DEC] [SEP] [CLS] [UNK]``.
    """
    made = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.WordPiece()
    ends = [("[CLS]", 2), ("[SEP]", 1)]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    named = {"pad_token": "[SEP]", "eos_token": "[SEP]", "cls_token": "[CLS]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **named)
