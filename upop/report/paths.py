"""What the module path of a block says about its place in the model."""

from __future__ import annotations

import re


def stack(block: str) -> str:
    """The part of the model whose layers are counted through: the first of the path.

    >>> stack("text_decoder.bert.encoder.layer.3.crossattention.self")
    'text_decoder'
    """
    return block.partition(".")[0]


def role(block: str) -> str:
    """The block's name below its layer, what follows the last number; it tells self- from cross-attention.

    >>> role("text_decoder.bert.encoder.layer.3.crossattention.self")
    'crossattention.self'
    """
    return re.sub(r"^(?:.*\.)?\d+(?:\.|$)", "", block)
