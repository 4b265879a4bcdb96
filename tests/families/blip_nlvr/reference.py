"""BLIP in plain matrix products, straight from a state dict with the authors' names: the independent reference.

Written after models/vit.py, med.py and nlvr_encoder.py of the authors' code, with its explicit softmax, its additive
masks, and its epsilons (1e-6 in the vision tower, 1e-12 in the text). Only the number of heads has to be told.
"""

import math

import torch
from torch.nn import functional as F


def linear(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def norm(state, name, x, eps):
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * state[f"{name}.weight"]
        + state[f"{name}.bias"]
    )


def count(state, pattern):
    """Layers of a stack: the numbers that stand behind ``pattern``."""
    return 1 + max(int(name[len(pattern) :].partition(".")[0]) for name in state if name.startswith(pattern))


def attend(q, k, v, heads, mask=None):
    """``(B, L, W)`` queries and ``(B, K, W)`` keys and values; one head at a time."""
    size = q.shape[-1] // heads
    mixed = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)
        mixed.append(torch.softmax(scores if mask is None else scores + mask, dim=-1) @ v[..., part])
    return torch.cat(mixed, dim=-1)


def vision(state, images, heads):
    """Image states ``(B, N, V)`` of ``(B, 3, S, S)``."""
    weight = state["visual_encoder.patch_embed.proj.weight"]
    patches = F.conv2d(images, weight, state["visual_encoder.patch_embed.proj.bias"], stride=weight.shape[-1])
    x = torch.cat([state["visual_encoder.cls_token"].repeat(len(images), 1, 1), patches.flatten(2).mT], dim=1)
    x = x + state["visual_encoder.pos_embed"]
    for number in range(count(state, "visual_encoder.blocks.")):
        name = f"visual_encoder.blocks.{number}"
        q, k, v = linear(state, f"{name}.attn.qkv", norm(state, f"{name}.norm1", x, 1e-6)).chunk(3, dim=-1)
        x = x + linear(state, f"{name}.attn.proj", attend(q, k, v, heads))
        hidden = F.gelu(linear(state, f"{name}.mlp.fc1", norm(state, f"{name}.norm2", x, 1e-6)))
        x = x + linear(state, f"{name}.mlp.fc2", hidden)
    return norm(state, "visual_encoder.norm", x, 1e-6)


def attention(state, name, x, others, heads, mask=None):
    """Mixed values of the attention ``name``, before its output layer."""
    q, k, v = (
        linear(state, f"{name}.{part}", source) for part, source in (("query", x), ("key", others), ("value", others))
    )
    return attend(q, k, v, heads, mask)


def text(state, prefix, ids, heads, attention_mask=None, others=None, causal=False, others_mask=None):
    """States ``(B, L, W)`` of the encoder or decoder body at ``prefix``.

    ``others`` is what it looks at: nothing, one tensor of states, or a list of two images.
    """
    x = state[f"{prefix}.embeddings.word_embeddings.weight"][ids]
    x = x + state[f"{prefix}.embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm(state, f"{prefix}.embeddings.LayerNorm", x, 1e-12)
    allowed = torch.ones_like(ids) if attention_mask is None else attention_mask
    allowed = allowed[:, None, :].to(x.dtype).repeat(1, ids.shape[1], 1)
    mask = (1 - (allowed.tril() if causal else allowed)) * -10000.0
    others_mask = None if others_mask is None else (1 - others_mask[:, None, :].to(x.dtype)) * -10000.0
    for number in range(count(state, f"{prefix}.encoder.layer.")):
        name = f"{prefix}.encoder.layer.{number}"
        branch = linear(
            state, f"{name}.attention.output.dense", attention(state, f"{name}.attention.self", x, x, heads, mask)
        )
        x = norm(state, f"{name}.attention.output.LayerNorm", branch + x, 1e-12)
        if isinstance(others, list):
            branch = twins(state, f"{name}.crossattention", x, others, heads)
        elif others is not None:
            mixed = attention(state, f"{name}.crossattention.self", x, others, heads, others_mask)
            branch = linear(state, f"{name}.crossattention.output.dense", mixed)
        if others is not None:
            x = norm(state, f"{name}.crossattention.output.LayerNorm", branch + x, 1e-12)
        hidden = F.gelu(linear(state, f"{name}.intermediate.dense", x))
        x = norm(state, f"{name}.output.LayerNorm", linear(state, f"{name}.output.dense", hidden) + x, 1e-12)
    return x


def twins(state, name, x, images, heads):
    """Both cross-attentions of a layer for visual reasoning, joined."""
    first, second = (
        linear(state, f"{name}.output.dense{twin}", attention(state, f"{name}.self{twin}", x, images[twin], heads))
        for twin in (0, 1)
    )
    if f"{name}.output.merge_layer.weight" in state:
        return linear(state, f"{name}.output.merge_layer", torch.cat([first, second], dim=-1))
    return (first + second) / 2


def reasoning(state, images, ids, heads, attention_mask=None):
    """Logits ``(B, 2)`` for ``(B, 2, 3, S, S)`` images; ``heads`` are the vision tower's and the text's."""
    pair = [vision(state, images[:, number], heads[0]) for number in (0, 1)]
    first = text(state, "text_encoder", ids, heads[1], attention_mask, pair)[:, 0]
    return linear(state, "cls_head.2", linear(state, "cls_head.0", first).relu())


def contrast(state, images, ids, heads, attention_mask=None):
    """Cosines of all images with all texts."""
    image = linear(state, "vision_proj", vision(state, images, heads[0])[:, 0])
    words = linear(state, "text_proj", text(state, "text_encoder", ids, heads[1], attention_mask)[:, 0])
    return F.normalize(image, dim=-1) @ F.normalize(words, dim=-1).T


def matching(state, images, ids, heads, attention_mask=None):
    """Logits ``(B, 2)`` of each image with its text."""
    seen = vision(state, images, heads[0])
    return linear(state, "itm_head", text(state, "text_encoder", ids, heads[1], attention_mask, seen)[:, 0])


def decoder(state, ids, others, heads, attention_mask=None, others_mask=None):
    """Logits ``(B, L, words)`` of the decoder that looks at ``others``."""
    x = text(state, "text_decoder.bert", ids, heads, attention_mask, others, causal=True, others_mask=others_mask)
    head = "text_decoder.cls.predictions"
    x = norm(state, f"{head}.transform.LayerNorm", F.gelu(linear(state, f"{head}.transform.dense", x)), 1e-12)
    return x @ state[f"{head}.decoder.weight"].T + state[f"{head}.bias"]
