"""What has to be right about a Hugging Face BLIP text decoder before a task trains it or lets it write."""

from __future__ import annotations

from typing import Any


def check_tokens(text: Any, processor: Any) -> None:  # noqa: ANN401 (Hugging Face's own)
    """Refuse a start token that the decoder does not know, and an end that no text has.

    Args:
        text: The decoder's configuration.
        processor: Processor of the model, or ``None``.

    Raises:
        ValueError: If one of the two is wrong.
    """
    if not 0 <= text.bos_token_id < text.vocab_size:
        raise ValueError(
            f"the decoder's start token is {text.bos_token_id}, but the model knows {text.vocab_size} tokens; set "
            "text_config.bos_token_id in its config.json"
        )
    last = text.sep_token_id if processor is None else processor.tokenizer("").input_ids[-1]
    if last != text.sep_token_id:
        raise ValueError(
            f"the tokenizer ends a text with token {last}, but the model stops at {text.sep_token_id}; set "
            f"text_config.sep_token_id to {last} in its config.json"
        )


def freeze_unread_(decoder: Any) -> None:  # noqa: ANN401 (Hugging Face's decoder)
    """Freeze the bias that nothing reads where it is not tied to the output layer's; DDP wants every gradient."""
    head = decoder.cls.predictions
    if head.bias is not head.decoder.bias:
        head.bias.requires_grad_(False)
