"""Names of BLIP's weights: as in the authors' checkpoints (Salesforce) and as in Hugging Face's models, both ways.

The two differ in the vision tower alone; the text encoder, the decoder and the heads are named alike, and so is all of
BLIP for visual reasoning, whose model is our own. What only training or an old version of transformers needs (momentum
copies, queues, the temperature, position numbers, masks of a search) has no place in a model and goes on the way in.

Source: the checkpoints of https://github.com/salesforce/BLIP (BLIP, Li et al., ICML 2022) and of
https://github.com/sdc17/UPop, whose dense ones are the same and whose compressed ones have the same names.

Shapes: ``V`` width of the vision tower.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from upop.families.names import renamed, turned
from upop.messages import some

Task = Literal["retrieval", "vqa", "captioning", "nlvr"]
State = Mapping[str, Tensor]

TOWER = (
    ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding"),
    ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"),
    ("visual_encoder.patch_embed.proj.", "vision_model.embeddings.patch_embedding."),
    ("visual_encoder.norm.", "vision_model.post_layernorm."),
    ("visual_encoder.blocks.", "vision_model.encoder.layers."),
)
"""Beginnings of names, the authors' and Hugging Face's."""
BLOCK = (
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
)
"""Parts of a block of the vision tower, the authors' and Hugging Face's."""
NOT_WEIGHTS = re.compile(
    r"(visual_encoder|vision_proj|text_encoder|text_proj)_m\..*"  # momentum copies
    r"|(image|text|idx|ptr)_queue|queue_ptr|temp"  # what the contrast with momentum copies keeps
    r"|text_(encoder|decoder)\..*\bposition_ids"  # 0, 1, 2, ...: a buffer of older versions
    r"|(visual_encoder|text_encoder|text_decoder)\..*\balpha"  # masks of UPop's search
)


def task_of(state: State) -> Task:
    """The task that a checkpoint was trained for, by the names of its weights (either kind).

    Raises:
        ValueError: If it is of no BLIP, or of BLIP's pre-training, which has the heads of several tasks.
    """
    names = [name for name in state if not NOT_WEIGHTS.fullmatch(name)]
    parts = {name.partition(".")[0] for name in names}
    if not parts & {"visual_encoder", "vision_model"} or not parts & {"text_encoder", "text_decoder"}:
        raise ValueError(
            f"these are not the weights of a BLIP: they are named {some(list(state))}; a BLIP's begin with "
            "'visual_encoder.' and with 'text_encoder.' or 'text_decoder.'"
        )
    if {"itm_head", "text_decoder"} <= parts:
        raise ValueError(
            "these are the weights of BLIP's pre-training, which has both 'itm_head' and 'text_decoder'; give those of "
            "a model that was finetuned for retrieval, VQA, captioning or NLVR"
        )
    if "cls_head" in parts and any(".crossattention.self0." in name for name in names):
        return "nlvr"
    if {"itm_head", "vision_proj", "text_proj", "text_encoder"} <= parts:
        return "retrieval"
    if "text_decoder" in parts:
        return "vqa" if "text_encoder" in parts else "captioning"
    raise ValueError(
        f"these are the weights of a BLIP without the head of a task: they are of {sorted(parts)}; retrieval has "
        "'itm_head', 'vision_proj' and 'text_proj', VQA and captioning have 'text_decoder', NLVR has 'cls_head'"
    )


def leftovers(state: State) -> list[str]:
    """Names of what :func:`to_hugging_face` leaves behind: momentum copies, queues, temperature, positions, masks."""
    return [name for name in state if NOT_WEIGHTS.fullmatch(name)]


def to_hugging_face(state: State) -> dict[str, Tensor]:
    """Weights of a checkpoint with the authors' names, named as in the models that upop loads.

    Those are Hugging Face's, and for NLVR :class:`~upop.families.blip_nlvr.BlipForVisualReasoning`, whose names are the
    authors'. The tensors are the same objects.

    Raises:
        ValueError: As :func:`task_of`.
    """
    left = set(leftovers(state))
    rename = str if task_of(state) == "nlvr" else hugging_face_name
    return {rename(name): tensor for name, tensor in state.items() if name not in left}


def to_salesforce(state: State) -> dict[str, Tensor]:
    """Weights of a model that upop loads, named as in the authors' checkpoints. The tensors are the same objects."""
    return {salesforce_name(name): tensor for name, tensor in state.items()}


def hugging_face_name(name: str) -> str:
    """Hugging Face's name for a weight that the authors call ``name``.

    >>> hugging_face_name("visual_encoder.blocks.3.attn.proj.bias")
    'vision_model.encoder.layers.3.self_attn.projection.bias'
    """
    return renamed(name, TOWER, BLOCK)


def salesforce_name(name: str) -> str:
    """The authors' name for a weight that Hugging Face calls ``name``.

    >>> salesforce_name("vision_model.post_layernorm.weight")
    'visual_encoder.norm.weight'
    """
    return renamed(name, turned(TOWER), turned(BLOCK))


def interpolate_positions(positions: Tensor, side: int) -> Tensor:
    """Position embeddings of the vision tower for images of another size, bicubic as in the authors' code.

    Args:
        positions: Those of the class token and of ``n x n`` patches, row by row, ``(1, 1 + n * n, V)``.
        side: Patches along a side of the new images.

    Returns:
        ``(1, 1 + side * side, V)``; the class token's is as it was.
    """
    first, grid = positions[:, :1], positions[:, 1:]
    old = math.isqrt(grid.shape[1])
    grid = grid.unflatten(1, (old, old)).permute(0, 3, 1, 2)  # (1, V, n, n)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([first, grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
