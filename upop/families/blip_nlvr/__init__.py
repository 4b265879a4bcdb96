"""BLIP for visual reasoning over two images (NLVR2): the model, which transformers lacks, and where it can be cut."""

from __future__ import annotations

from transformers import AutoConfig

from upop.families.blip_nlvr.modeling import BlipForVisualReasoning, BlipNlvrConfig
from upop.families.blip_nlvr.sites import FAMILY

__all__ = ["FAMILY", "BlipForVisualReasoning", "BlipNlvrConfig"]

AutoConfig.register(BlipNlvrConfig.model_type, BlipNlvrConfig, exist_ok=True)
# AutoModel is not told of the class: it would prefer it to the one in a compressed directory, which cuts itself.
