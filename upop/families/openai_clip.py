"""Names of CLIP's weights: as in OpenAI's code and open_clip's, and as in Hugging Face's ``CLIPModel``, both ways.

The two differ in names, in one layer for the queries, keys and values of an attention where Hugging Face has three,
and in projections that stand transposed. Only two transformers of OpenAI's kind can be read: a ResNet, a timm tower or
another text encoder is refused. What only training needs goes on the way in: UPop's authors keep momentum copies,
queues and masks beside the weights, TorchScript archives a few numbers.

Source: https://github.com/openai/CLIP (Radford et al., ICML 2021), https://github.com/mlfoundations/open_clip, whose
``CustomTextCLIP`` puts ``text.`` before the names of the text tower, and https://github.com/sdc17/UPop.

Shapes: ``W`` width of a tower, ``K`` heads times their size, ``D`` width of the space that both share.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from upop.families.names import renamed, turned
from upop.messages import some

State = Mapping[str, Tensor]

WHOLE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.proj": "visual_projection.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text_projection": "text_projection.weight",
}
"""Names, OpenAI's and Hugging Face's."""
PARTS = (
    ("visual.conv1.", "vision_model.embeddings.patch_embedding."),
    ("visual.ln_pre.", "vision_model.pre_layrnorm."),
    ("visual.ln_post.", "vision_model.post_layernorm."),
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
    ("token_embedding.", "text_model.embeddings.token_embedding."),
    ("ln_final.", "text_model.final_layer_norm."),
    ("transformer.resblocks.", "text_model.encoder.layers."),
)
"""Beginnings of names, OpenAI's and Hugging Face's."""
BLOCK = (
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".attn.out_proj.", ".self_attn.out_proj."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
)
"""Parts of a block, OpenAI's and Hugging Face's."""
TRANSPOSED = ("visual.proj", "text_projection")
FUSED = {"q": "queries", "k": "keys", "v": "values"}
"""What ``in_proj`` holds, in this order, ``(3 * K, W)``."""
OF_FUSED = re.compile(r"(.*)\.self_attn\.([qkv])_proj\.(weight|bias)")
NOT_WEIGHTS = re.compile(
    r"(visual|transformer|token_embedding|ln_final)_m\..*|(text_projection|positional_embedding)_m"  # momentum copies
    r"|(image|text|idx|ptr)_queue"  # what the contrast with momentum copies keeps
    r"|(visual\.)?transformer\.resblocks\..*\balpha"  # masks of a search
    r"|input_resolution|context_length|vocab_size|attn_mask"  # numbers of the architecture
)


def is_openai_clip(state: State) -> bool:
    """Whether weights are named as a CLIP's of OpenAI's code or open_clip's are, whatever its towers."""
    names = [name.removeprefix("module.") for name in state]
    return any(name.startswith("visual.") for name in names) and any(
        name.startswith(("transformer.", "text.")) for name in names
    )


def leftovers(state: State) -> list[str]:
    """Names of what :func:`to_hugging_face` leaves behind: momentum copies, queues, masks, sizes."""
    return [name for name in state if NOT_WEIGHTS.fullmatch(_plain(name))]


def to_hugging_face(state: State) -> dict[str, Tensor]:
    """Weights of a checkpoint with OpenAI's names, named as in Hugging Face's ``CLIPModel``.

    Nothing is copied: queries, keys and values are views of the one layer that holds them, and so are transposed
    projections.

    Raises:
        ValueError: If a tower is none of OpenAI's transformers, or a layer does not hold queries, keys and values of
            one size.
    """
    left = set(leftovers(state))
    plain = {_plain(name): tensor for name, tensor in state.items() if name not in left}
    _check_towers(plain)
    found: dict[str, Tensor] = {}
    for name, tensor in plain.items():
        block, fused, kind = name.rpartition(".attn.in_proj_")
        if fused:
            if tensor.shape[0] % len(FUSED):
                raise ValueError(f"{name} is {tuple(tensor.shape)}: its rows are not three equal parts for q, k and v")
            block = renamed(f"{block}.", PARTS)
            parts = tensor.chunk(len(FUSED))
            found |= {f"{block}self_attn.{key}_proj.{kind}": part for key, part in zip(FUSED, parts, strict=True)}
        elif name == "logit_scale":
            found[name] = tensor.reshape(()) if tensor.numel() == 1 else tensor
        else:
            found[_hugging_face_name(name)] = tensor.T if name in TRANSPOSED else tensor
    return found


def to_openai(state: State) -> dict[str, Tensor]:
    """Weights of Hugging Face's ``CLIPModel``, named as in OpenAI's code."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        fused = OF_FUSED.fullmatch(name)
        if fused is None:
            theirs = _openai_name(name)
            found[theirs] = tensor.T if theirs in TRANSPOSED else tensor
        elif fused[2] == "q":
            parts = [state[f"{fused[1]}.self_attn.{key}_proj.{fused[3]}"] for key in FUSED]
            found[_in_proj(fused)] = torch.cat(parts)
    return found


def openai_name(name: str) -> str:
    """Where OpenAI's code keeps the weight that Hugging Face calls ``name``, for a person to read.

    >>> openai_name("text_model.encoder.layers.3.mlp.fc1.bias")
    'transformer.resblocks.3.mlp.c_fc.bias'
    >>> openai_name("vision_model.encoder.layers.0.self_attn.k_proj.weight")
    'visual.transformer.resblocks.0.attn.in_proj_weight (keys)'
    >>> openai_name("visual_projection.weight")
    'visual.proj (transposed)'
    """
    fused = OF_FUSED.fullmatch(name)
    if fused:
        return f"{_in_proj(fused)} ({FUSED[fused[2]]})"
    theirs = _openai_name(name)
    return f"{theirs} (transposed)" if theirs in TRANSPOSED else theirs


def _plain(name: str) -> str:
    """A name without what a wrapper or open_clip's ``CustomTextCLIP`` puts before it."""
    return name.removeprefix("module.").removeprefix("text.")


def _check_towers(names: Mapping[str, Tensor]) -> None:
    """Refuse towers of another kind, which have other names.

    Raises:
        ValueError: With the first of those names.
    """
    if any(name.startswith("visual.layer1.") for name in names):
        raise ValueError("this is a CLIP whose images go through a ResNet; one with a vision transformer can be read")
    for what, tower in (("vision", "visual.transformer.resblocks."), ("text", "transformer.resblocks.")):
        if not any(name.startswith(tower) for name in names):
            others = [name for name in names if name.startswith("visual.") == (what == "vision")]
            raise ValueError(
                f"the {what} tower of this CLIP is none of OpenAI's transformers: it has no weights named '{tower}', "
                f"only {some(others)}; such a tower cannot be read"
            )


def _hugging_face_name(name: str) -> str:
    return WHOLE.get(name) or renamed(name, PARTS, BLOCK)


def _openai_name(name: str) -> str:
    whole = {ours: theirs for theirs, ours in WHOLE.items()}
    return whole.get(name) or renamed(name, turned(PARTS), turned(BLOCK))


def _in_proj(found: re.Match[str]) -> str:
    """OpenAI's name of the layer that holds the queries, keys or values of :data:`OF_FUSED`."""
    return f"{renamed(found[1] + '.', turned(PARTS))}attn.in_proj_{found[3]}"
