"""Hugging Face ViT and DeiT: a stored scale and ``(-1, head_dim)`` reshapes, as CLIP, with other attribute names."""

from __future__ import annotations

from upop.families.base import AttentionNames, Block, Family, attention_sites, neuron_site
from upop.structure import Site

ATTENTION = AttentionNames(
    "attention",
    ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "attention.o_proj",
    heads="num_attention_heads",
)


def _layer(block: Block) -> list[Site]:
    return [
        *attention_sites(block, ATTENTION, "vision", "vision"),
        *neuron_site(block, "mlp.fc1", "mlp.fc2", block.module.mlp.activation_fn, "vision", "vision"),
    ]


FAMILY = Family("ViT, DeiT", "transformers", {"ViTLayer": _layer, "DeiTLayer": _layer})
