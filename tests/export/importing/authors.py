"""Compressed checkpoints as UPop's authors' code makes and runs them, re-stated in plain tensors.

Written after ``compress`` of their models, and after models/vit.py and med.py and clip/mock.py and model.py: they keep
the same positions in every head of a layer, and draw new biases for ``qkv`` of BLIP's vision tower. BLIP's vision tower
keeps the scale of the dense heads, all other attention has that of the heads it finds: the reference of the text towers
(tests/families/blip_nlvr) and :func:`clip` go by the width of the queries.
"""

import torch
from torch.nn import functional as F

from tests.families.blip_nlvr import reference
from tests.families.blip_nlvr.reference import attend, count, linear, norm


class Cutter:
    """Cuts layers of a state dict, in place, as a search with random masks would have."""

    def __init__(self, state, part, seed):
        self.state, self.part, self.draw = state, part, torch.Generator().manual_seed(seed)

    def mask(self, units):
        """Which units stay: at least one."""
        kept = torch.rand(units, generator=self.draw) < self.part
        kept[torch.randint(units, (1,), generator=self.draw)] = True
        return kept

    def rows(self, name, kept):
        self.state[name] = self.state[name][kept]

    def columns(self, name, kept):
        self.state[name] = self.state[name][:, kept]

    def mlp(self, first, second):
        kept = self.mask(len(self.state[f"{first}.bias"]))
        self.rows(f"{first}.weight", kept)
        self.rows(f"{first}.bias", kept)
        self.columns(f"{second}.weight", kept)

    def attention(self, producers, out, heads, fused=1, weight=".weight", bias=".bias"):
        width = self.state[f"{producers[0]}{bias}"].shape[0] // fused
        kept = self.mask(width // heads)
        for name in producers:
            self.rows(f"{name}{weight}", kept.repeat(fused * heads))
            self.rows(f"{name}{bias}", kept.repeat(fused * heads))
        self.columns(f"{out}.weight", kept.repeat(heads))


def cut_blip(state, heads, part=0.6, seed=0):
    """A compressed checkpoint of a dense one; about ``part`` of the units stay."""
    cutter = Cutter(dict(state), part, seed)
    for number in range(count(state, "visual_encoder.blocks.")):
        block = f"visual_encoder.blocks.{number}"
        cutter.mlp(f"{block}.mlp.fc1", f"{block}.mlp.fc2")
        cutter.attention([f"{block}.attn.qkv"], f"{block}.attn.proj", heads[0], fused=3)
        bias = f"{block}.attn.qkv.bias"
        cutter.state[bias] = torch.rand(cutter.state[bias].shape, generator=cutter.draw) - 0.5
    for tower in ("text_encoder", "text_decoder.bert"):
        layers = f"{tower}.encoder.layer."
        if not any(name.startswith(layers) for name in state):
            continue
        for number in range(count(state, layers)):
            layer = f"{layers}{number}"
            cutter.mlp(f"{layer}.intermediate.dense", f"{layer}.output.dense")
            for module, twin in (
                ("attention", ""),
                ("crossattention", ""),
                ("crossattention", 0),
                ("crossattention", 1),
            ):
                name = f"{layer}.{module}.self{twin}"
                if f"{name}.query.weight" in state:
                    producers = [f"{name}.{part}" for part in ("query", "key", "value")]
                    cutter.attention(producers, f"{layer}.{module}.output.dense{twin}", heads[1])
    return cutter.state


def cut_clip(state, heads, part=0.6, seed=0):
    """A compressed checkpoint of a dense one, with OpenAI's names."""
    cutter = Cutter(dict(state), part, seed)
    for tower, number_of_heads in zip(("visual.transformer.resblocks.", "transformer.resblocks."), heads, strict=True):
        for number in range(count(state, tower)):
            block = f"{tower}{number}"
            cutter.mlp(f"{block}.mlp.c_fc", f"{block}.mlp.c_proj")
            cutter.attention(
                [f"{block}.attn.in_proj"], f"{block}.attn.out_proj", number_of_heads, 3, weight="_weight", bias="_bias"
            )
    return cutter.state


def blip_vision(state, images, heads):
    """Image states ``(B, N, V)``; attention at the scale of the dense heads, whatever is left of them."""
    weight = state["visual_encoder.patch_embed.proj.weight"]
    patches = F.conv2d(images, weight, state["visual_encoder.patch_embed.proj.bias"], stride=weight.shape[-1])
    x = torch.cat([state["visual_encoder.cls_token"].repeat(len(images), 1, 1), patches.flatten(2).mT], dim=1)
    x = x + state["visual_encoder.pos_embed"]
    scale = (x.shape[-1] / heads) ** -0.5
    for number in range(count(state, "visual_encoder.blocks.")):
        name = f"visual_encoder.blocks.{number}"
        qkv = linear(state, f"{name}.attn.qkv", norm(state, f"{name}.norm1", x, 1e-6))
        q, k, v = qkv.view(*x.shape[:2], 3, heads, -1).unbind(2)  # (B, N, H, P)
        weights = torch.softmax(torch.einsum("bnhp,bmhp->bhnm", q, k) * scale, dim=-1)
        x = x + linear(state, f"{name}.attn.proj", torch.einsum("bhnm,bmhp->bnhp", weights, v).flatten(2))
        hidden = F.gelu(linear(state, f"{name}.mlp.fc1", norm(state, f"{name}.norm2", x, 1e-6)))
        x = x + linear(state, f"{name}.mlp.fc2", hidden)
    return norm(state, "visual_encoder.norm", x, 1e-6)


def blip(task, state, images, ids, mask, heads):
    """What a checkpoint of a task computes of pairs of images ``(B, 2, 3, S, S)`` and texts ``(B, L)``."""
    pair = [blip_vision(state, images[:, number], heads[0]) for number in (0, 1)]
    if task == "nlvr":
        first = reference.text(state, "text_encoder", ids, heads[1], mask, pair)[:, 0]
        return [linear(state, "cls_head.2", linear(state, "cls_head.0", first).relu())]
    seen = pair[0]
    if task == "captioning":
        return [reference.decoder(state, ids, seen, heads[1], mask)]
    fused = reference.text(state, "text_encoder", ids, heads[1], mask, seen)
    if task == "vqa":
        return [reference.decoder(state, answers(ids), fused, heads[1], others_mask=mask)]
    image = F.normalize(linear(state, "vision_proj", seen[:, 0]), dim=-1)
    words = linear(state, "text_proj", reference.text(state, "text_encoder", ids, heads[1], mask)[:, 0])
    return [linear(state, "itm_head", fused[:, 0]), image @ F.normalize(words, dim=-1).T]


def answers(ids):
    """Tokens of answers, for the decoder."""
    return ids[:, :5].flip(1)


def clip(state, images, ids, heads, quick_gelu=True):
    """Features of images ``(B, 3, S, S)`` and of texts ``(B, L)``."""
    weight = state["visual.conv1.weight"]
    patches = F.conv2d(images, weight, stride=weight.shape[-1]).flatten(2).mT
    x = torch.cat([state["visual.class_embedding"].repeat(len(images), 1, 1), patches], dim=1)
    x = norm(state, "visual.ln_pre", x + state["visual.positional_embedding"], 1e-5)
    x = blocks(state, "visual.transformer.resblocks.", x, heads[0], quick_gelu)
    seen = norm(state, "visual.ln_post", x[:, 0], 1e-5) @ state["visual.proj"]
    words = state["token_embedding.weight"][ids] + state["positional_embedding"]
    causal = torch.full((ids.shape[1],) * 2, float("-inf")).triu(1)
    words = norm(state, "ln_final", blocks(state, "transformer.resblocks.", words, heads[1], quick_gelu, causal), 1e-5)
    return seen, words[torch.arange(len(ids)), ids.argmax(-1)] @ state["text_projection"]


def blocks(state, tower, x, heads, quick_gelu, mask=None):
    """A stack of CLIP's blocks; attention at the scale of the heads as they are."""
    for number in range(count(state, tower)):
        name = f"{tower}{number}"
        inside = norm(state, f"{name}.ln_1", x, 1e-5)
        q, k, v = (inside @ state[f"{name}.attn.in_proj_weight"].T + state[f"{name}.attn.in_proj_bias"]).chunk(3, -1)
        x = x + linear(state, f"{name}.attn.out_proj", attend(q, k, v, heads, mask))
        hidden = linear(state, f"{name}.mlp.c_fc", norm(state, f"{name}.ln_2", x, 1e-5))
        hidden = hidden * torch.sigmoid(1.702 * hidden) if quick_gelu else F.gelu(hidden)
        x = x + linear(state, f"{name}.mlp.c_proj", hidden)
    return x
