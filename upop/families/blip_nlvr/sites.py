"""Where BLIP for visual reasoning can be cut: every attention stores its scale, so nothing has to be folded.

The two cross-attentions of a text layer are sites of their own: each has its own projections and, in ``dense0`` and
``dense1``, its own output layer. The merge layer, which takes both outputs at the model's width, stays whole.
"""

from __future__ import annotations

from upop.families.base import AttentionNames, Block, Family, attention_sites, neuron_site
from upop.structure import Site

VISION = AttentionNames("attn", ("attn.qkv",), "attn.proj")


def text_attention(name: str, out: str) -> AttentionNames:
    """Where the text attention ``name`` keeps its parts."""
    return AttentionNames(name, (f"{name}.query", f"{name}.key", f"{name}.value"), out)


SELF = text_attention("attention.self", "attention.output.dense")
TWINS = [text_attention(f"crossattention.self{twin}", f"crossattention.output.dense{twin}") for twin in (0, 1)]


def _vision_block(block: Block) -> list[Site]:
    return [
        *attention_sites(block, VISION, "vision", "vision"),
        *neuron_site(block, "mlp.fc1", "mlp.fc2", block.module.mlp.act, "vision", "vision"),
    ]


def _text_layer(block: Block) -> list[Site]:
    sites = attention_sites(block, SELF, "text", "text")
    for twin in TWINS:
        sites += attention_sites(block, twin, "fusion", "text", keys="image")  # either image has as many tokens
    return [
        *sites,
        *neuron_site(block, "intermediate.dense", "output.dense", block.module.intermediate.act, "text", "text"),
    ]


FAMILY = Family(
    "BLIP for visual reasoning", "upop", {"BlipNlvrVisionBlock": _vision_block, "BlipNlvrTextLayer": _text_layer}
)
