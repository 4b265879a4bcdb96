"""A tiny BLIP for visual reasoning and what it reads."""

import torch

from tests import tiny
from upop.families.blip_nlvr import BlipForVisualReasoning, BlipNlvrConfig


def config(**changes):
    """Four text layers, of which the last two merge."""
    text = tiny.TEXT | tiny.IDS | {"sep_token_id": 1, "num_hidden_layers": 4}
    return BlipNlvrConfig(**{"vision_config": dict(tiny.VISION), "text_config": text} | changes)


def model(seed=0, **changes):
    """With random biases and norms, and weights far from 0, so that a lost one shows."""
    torch.manual_seed(seed)
    made = BlipForVisualReasoning(config(**changes)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def inputs(batch=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, 12, dtype=torch.long)
    mask[0, 7:] = 0
    return {
        "pixel_values": torch.randn(batch, 2, 3, 16, 16, generator=generator),
        "input_ids": torch.randint(2, 50, (batch, 12), generator=generator),
        "attention_mask": mask,
    }
