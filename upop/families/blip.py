"""Hugging Face BLIP: the vision tower, and the text encoder or decoder with its attention over another stream.

The vision attention is ours (:mod:`upop.families.blip_attention`), with a stored scale. The text attention divides by
the root of the current head size, so a cut of head-dim positions folds the factor into the query rows. Cross-attention
is a site of its own, of modality ``fusion``: its queries come from the text, its keys and values from the states of
the image (or, in the answer decoder, of the question), which have their own width and number of tokens.
"""

from __future__ import annotations

from upop.families.base import AttentionNames, Block, Family, attention_sites, neuron_site
from upop.structure import Site

VISION = AttentionNames("self_attn", ("self_attn.qkv",), "self_attn.projection")


def text_attention(name: str) -> AttentionNames:
    """Where the attention ``name`` of a BLIP text layer keeps its parts."""
    return AttentionNames(
        f"{name}.self",
        (f"{name}.self.query", f"{name}.self.key", f"{name}.self.value"),
        f"{name}.output.dense",
        heads="num_attention_heads",
        head_dim="attention_head_size",
        width="all_head_size",
        fold=True,
    )


def _vision_layer(block: Block) -> list[Site]:
    from upop.families.blip_attention import BlipVisionAttention

    attention = block.module.self_attn
    if not isinstance(attention, BlipVisionAttention):
        raise ValueError(
            f"{block.path}.self_attn is a {type(attention).__name__} of transformers, which cannot be cut; load the "
            "model with upop, or call upop.families.blip_attention.swap_attention_ on it"
        )
    return [
        *attention_sites(block, VISION, "vision", "vision"),
        *neuron_site(block, "mlp.fc1", "mlp.fc2", block.module.mlp.activation_fn, "vision", "vision"),
    ]


def _text_layer(block: Block) -> list[Site]:
    # An encoder and a decoder of one model see other numbers of tokens, so each tower has streams of its own.
    tokens = block.path.rpartition(".encoder.layer.")[0] or "text"
    sites = attention_sites(block, text_attention("attention"), "text", tokens)
    if hasattr(block.module, "crossattention"):
        sites += attention_sites(
            block, text_attention("crossattention"), "fusion", tokens, keys=f"{tokens}.crossattention"
        )
    activation = block.module.intermediate.intermediate_act_fn
    return [*sites, *neuron_site(block, "intermediate.dense", "output.dense", activation, "text", tokens)]


FAMILY = Family("BLIP", "transformers", {"BlipEncoderLayer": _vision_layer, "BlipTextLayer": _text_layer})
