"""Hugging Face BERT: a stored ``scaling``, and three attributes that tell the width of the attention."""

from __future__ import annotations

from upop.families.base import AttentionNames, Block, Family, attention_sites, neuron_site
from upop.structure import Site

ATTENTION = AttentionNames(
    "attention.self",
    ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output.dense",
    heads="num_attention_heads",
    head_dim="attention_head_size",
    width="all_head_size",
)


def _layer(block: Block) -> list[Site]:
    if hasattr(block.module, "crossattention"):
        raise ValueError(
            f"{block.path} has cross-attention, which the BERT family does not cut; use a BERT encoder "
            "(config.add_cross_attention=False)"
        )
    activation = block.module.intermediate.intermediate_act_fn
    return [
        *attention_sites(block, ATTENTION, "text", "text"),
        *neuron_site(block, "intermediate.dense", "output.dense", activation, "text", "text"),
    ]


FAMILY = Family("BERT", "transformers", {"BertLayer": _layer})
