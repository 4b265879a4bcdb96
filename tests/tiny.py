"""Tiny models of every supported architecture, built in code, for the contract tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    CLIPConfig,
    CLIPModel,
    DeiTConfig,
    DeiTModel,
    SiglipConfig,
    SiglipModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTModel,
)

from upop.families.blip_attention import swap_attention_
from upop.families.blip_nlvr import BlipForVisualReasoning, BlipNlvrConfig

VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "vocab_size": 50,
    "max_position_embeddings": 12,
}
IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}


def clip() -> nn.Module:
    return CLIPModel(CLIPConfig(text_config=TEXT | IDS, vision_config=VISION, projection_dim=16))


def siglip() -> nn.Module:
    text = TEXT | IDS | {"projection_size": 32}
    return SiglipModel(SiglipConfig(text_config=text, vision_config=VISION))


def vit() -> nn.Module:
    return ViTModel(ViTConfig(**VISION))


def deit() -> nn.Module:
    return DeiTModel(DeiTConfig(**VISION))


def bert() -> nn.Module:
    return BertModel(BertConfig(**TEXT))


def dual_encoder() -> nn.Module:
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        ViTConfig(**VISION), BertConfig(**TEXT), projection_dim=16
    )
    return VisionTextDualEncoderModel(config)


def blip_config(**vision: int) -> BlipConfig:
    return BlipConfig(
        vision_config=VISION | {"initializer_range": 0.02} | vision,
        text_config=TEXT | IDS | {"sep_token_id": 1},
        image_text_hidden_size=16,
    )


def blip_retrieval() -> nn.Module:
    return swapped(BlipForImageTextRetrieval(blip_config()))


def blip_vqa() -> nn.Module:
    """Vision and text have one width: the decoder is built for the images' but attends to the questions."""
    return swapped(BlipForQuestionAnswering(blip_config(hidden_size=24, num_attention_heads=4)))


def blip_captioning() -> nn.Module:
    return swapped(BlipForConditionalGeneration(blip_config()))


def blip_nlvr() -> nn.Module:
    """Three text layers of which the last two merge the images."""
    return BlipForVisualReasoning(BlipNlvrConfig(vision_config=VISION, text_config=TEXT | IDS))


def swapped(model: nn.Module) -> nn.Module:
    swap_attention_(model)
    return model


def timm_vit() -> nn.Module:
    return timm.models.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=4, mlp_ratio=1.5, num_classes=5
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "clip": clip,
    "siglip": siglip,
    "vit": vit,
    "deit": deit,
    "bert": bert,
    "dual_encoder": dual_encoder,
    "timm_vit": timm_vit,
    "blip_retrieval": blip_retrieval,
    "blip_vqa": blip_vqa,
    "blip_captioning": blip_captioning,
    "blip_nlvr": blip_nlvr,
}


def build(name: str, seed: int = 0) -> nn.Module:
    """A tiny model with random biases too, so that a bias that gets lost shows."""
    torch.manual_seed(seed)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() <= 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif parameter.dim() == 2:
                parameter.mul_(4)  # far from the linear regime, so that a wrong attention scale shows
    return model


def inputs(model: nn.Module, batch: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """Random inputs that ``model`` takes."""
    generator = torch.Generator().manual_seed(seed)
    kind = type(model).__name__
    size = model.patch_embed.img_size if kind == "VisionTransformer" else (16, 16)
    images = torch.randn(batch, 3, *size, generator=generator)
    ids = torch.randint(2, 50, (batch, 12), generator=generator)
    ids[:, -1] = 1
    if kind == "VisionTransformer":
        return {"x": images}
    if kind in ("ViTModel", "DeiTModel"):
        return {"pixel_values": images}
    if kind == "BertModel":
        return {"input_ids": ids}
    if kind == "BlipForQuestionAnswering":
        return {"pixel_values": images, "input_ids": ids, "decoder_input_ids": ids[:, :4]}
    if kind == "BlipForVisualReasoning":
        return {"pixel_values": torch.stack([images, -images.flip(-1)], dim=1), "input_ids": ids}
    return {"pixel_values": images, "input_ids": ids}


@torch.no_grad()
def outputs(model: nn.Module, seed: int = 0) -> Tensor:
    """Everything that ``model`` computes from :func:`inputs`, in one vector."""
    return compute(model, seed)


def compute(model: nn.Module, seed: int = 0) -> Tensor:
    """As :func:`outputs`, with gradients, in the precision of ``model``."""
    dtype = next(model.parameters()).dtype
    given = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in inputs(model, seed=seed).items()
    }
    if type(model).__name__.startswith("Blip"):
        return torch.cat([value.flatten() for value in _blip(model, given)])
    result = model(**given)
    if isinstance(result, Tensor):
        return result.flatten()
    names = ("logits_per_image", "image_embeds", "text_embeds", "last_hidden_state", "pooler_output")
    found = [getattr(result, name, None) for name in names]
    return torch.cat([value.flatten() for value in found if value is not None])


def _blip(model: nn.Module, given: dict[str, Tensor]) -> list[Tensor]:
    """The scores or logits, and states before them, which lie closer to what is cut."""
    if isinstance(model, BlipForImageTextRetrieval):
        matching, contrast = model(**given), model(**given, use_itm_head=False)
        return [matching.last_hidden_state, matching.itm_score, contrast.itm_score]
    seen: list[Any] = []  # VQA does not return the logits of its decoder
    tower = model.text_encoder if isinstance(model, BlipForVisualReasoning) else model.text_decoder
    hook = tower.register_forward_hook(lambda _, __, output: seen.append(output))
    try:
        result = model(**given)
    finally:
        hook.remove()
    if isinstance(model, BlipForVisualReasoning):
        return [result.logits, *seen]
    return [result.last_hidden_state, seen[0].logits]
