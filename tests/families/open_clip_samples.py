"""A tiny CLIP of open_clip, built from its config, and the Hugging Face configuration of the same architecture."""

import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from transformers import CLIPConfig

WORDS = 50
HEADS = (4, 3)
SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": HEADS[0]}
VISION = SIZE | {"image_size": 16, "patch_size": 8}
TEXT = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": HEADS[1]}
TEXT |= {"vocab_size": WORDS, "max_position_embeddings": 12, "bos_token_id": 0, "eos_token_id": WORDS - 1}


def theirs(quick_gelu=True, seed=0, build=CLIP, image_size=16, **vision):
    """open_clip's model, with weights far from 0 and random biases."""
    torch.manual_seed(seed)
    images = {"layers": 2, "width": 32, "head_width": 8, "mlp_ratio": 2.0, "patch_size": 8, "image_size": image_size}
    text = CLIPTextCfg(context_length=12, vocab_size=WORDS, width=24, heads=HEADS[1], layers=3, mlp_ratio=2.0)
    model = build(16, CLIPVisionCfg(**images | vision), text, quick_gelu=quick_gelu).eval()
    return spread(model)


def spread(model):
    """Weights far from the linear regime, so that one that is lost, or another activation or scale, shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def custom(**changes):
    """The same model of open_clip's other class, whose text tower has names of its own."""
    return theirs(build=CustomTextCLIP, **changes)


def config(quick_gelu=True, **changes):
    """Of Hugging Face's CLIP."""
    act = {"hidden_act": "quick_gelu" if quick_gelu else "gelu"}
    return CLIPConfig(**{"vision_config": VISION | act, "text_config": TEXT | act, "projection_dim": 16} | changes)


def inputs(batch=3, seed=0):
    """Images, and texts that end, at various places, with the highest token."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, WORDS - 1, (batch, 12), generator=generator)
    for row, end in enumerate(torch.randint(2, 12, (batch,), generator=generator).tolist()):
        ids[row, end] = WORDS - 1
        ids[row, end + 1 :] = 0
    return torch.randn(batch, 3, 16, 16, generator=generator), ids
