"""A decoder that trains what it reads, and knows where a text begins and ends."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import BlipForQuestionAnswering

from tests import tiny
from upop.tasks.text_decoder import check_tokens, freeze_unread_


class Processor:
    """Ends every text with token 1, as the tiny models do."""

    def tokenizer(self, text: str) -> Any:
        return type("Encoding", (), {"input_ids": [2, 1]})


@pytest.mark.parametrize("tied", [True, False])
def test_only_a_bias_that_nothing_reads_is_frozen(tied: bool) -> None:
    config = tiny.blip_config(hidden_size=24)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied
    decoder = BlipForQuestionAnswering(config).text_decoder
    freeze_unread_(decoder)
    frozen = [name for name, parameter in decoder.named_parameters() if not parameter.requires_grad]
    assert frozen == ([] if tied else ["cls.predictions.bias"])


def test_messages() -> None:
    text = tiny.blip_config().text_config
    check_tokens(text, None)
    check_tokens(text, Processor())
    text.sep_token_id = 7
    with pytest.raises(
        ValueError,
        match="tokenizer ends a text with token 1, but the model stops at 7; set text_config.sep_token_id to 1 in its",
    ):
        check_tokens(text, Processor())
    text.bos_token_id = 30522
    with pytest.raises(
        ValueError,
        match="the decoder's start token is 30522, but the model knows 50 tokens; set text_config.bos_token_id",
    ):
        check_tokens(text, None)
