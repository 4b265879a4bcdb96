"""timm ViTs built of ``Block`` with ``Attention`` (fused qkv) and ``Mlp``: vit_*, deit_*, and their CLIP towers.

timm's fused attention derives its scale from the current head size, so a cut of head-dim positions folds the factor
into the query rows and sets the stored ``scale``, which the unfused path uses, to match.
"""

from __future__ import annotations

from upop.families.base import AttentionNames, Block, Family, attention_sites, neuron_site, refuse_norms
from upop.structure import Site

ATTENTION = AttentionNames("attn", ("attn.qkv",), "attn.proj", width="attn_dim", fold=True)
MODULES = {"attn": "Attention", "mlp": "Mlp"}
PACKAGES = ("timm.layers.", "timm.models.vision_transformer.")  # BEiT, SAM, PVT, ... name theirs the same


def _block(block: Block) -> list[Site]:
    for name, expected in MODULES.items():
        kind = type(getattr(block.module, name, None))
        found = f"{kind.__module__}.{kind.__name__}"
        if not (found.startswith(PACKAGES) and kind.__name__ == expected):
            raise ValueError(
                f"{block.path}.{name} is a {found}, which cannot be cut; supported: timm.layers.{expected}"
            )
    if getattr(block.module.attn, "gate", None) is not None:
        raise ValueError(f"{block.path}.attn is gated, which cannot be cut; supported: timm's Attention without a gate")
    refuse_norms(block, ["attn.q_norm", "attn.k_norm"], ["head_dim"], "head size")
    refuse_norms(block, ["attn.norm"], ["head", "head_dim"], "heads")
    refuse_norms(block, ["mlp.norm"], ["neuron"], "neurons")
    return [
        *attention_sites(block, ATTENTION, "vision", "vision"),
        *neuron_site(block, "mlp.fc1", "mlp.fc2", block.module.mlp.act, "vision", "vision"),
    ]


FAMILY = Family("timm ViT", "timm", {"Block": _block})
