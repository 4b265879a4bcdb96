"""Hugging Face CLIP and SigLIP: both towers, and SigLIP's pooling head.

Their attention reshapes with ``(-1, head_dim)`` and uses a stored ``scale``: the cut slices the projections and sets
``head_dim`` and ``num_heads``; the scale of the dense model stays. SigLIP's pooling head attends with
``torch.nn.MultiheadAttention``, which checks its width against the input: its MLP can be cut, its attention stays
whole.
"""

from __future__ import annotations

from typing import Any

from upop.families.base import AttentionNames, Block, Family, attention_sites, neuron_site
from upop.structure import Modality, Site

ATTENTION = AttentionNames(
    "self_attn", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.out_proj"
)


def _modality(module: Any) -> Modality:  # noqa: ANN401 (an attention of any of these classes)
    return "vision" if "vision" in module.config.model_type else "text"


def _encoder_layer(block: Block) -> list[Site]:
    modality = _modality(block.module.self_attn)
    return [
        *attention_sites(block, ATTENTION, modality, modality),
        *neuron_site(block, "mlp.fc1", "mlp.fc2", block.module.mlp.activation_fn, modality, modality),
    ]


def _pooling_head(block: Block) -> list[Site]:
    return neuron_site(block, "mlp.fc1", "mlp.fc2", block.module.mlp.activation_fn, "vision", "probe")


FAMILY = Family(
    "CLIP, SigLIP",
    "transformers",
    {
        "CLIPEncoderLayer": _encoder_layer,
        "SiglipEncoderLayer": _encoder_layer,
        "SiglipMultiheadAttentionPoolingHead": _pooling_head,
    },
)
