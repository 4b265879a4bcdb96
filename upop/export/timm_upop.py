"""Load a timm model that upop has made smaller from the directory of this file; torch, timm and safetensors suffice.

    import sys; sys.path.insert(0, "DIRECTORY")
    from timm_upop import load
    model = load()

``timm.data.resolve_model_data_config(model)`` then says how its images are to be prepared.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import load_file
from torch import nn

from upop.export.modeling_upop import resize_


def load(directory: str | Path | None = None) -> nn.Module:
    """The model of a directory, in evaluation mode.

    Args:
        directory: With config.json and model.safetensors; by default the one that this file is in.
    """
    path = Path(__file__).parent if directory is None else Path(directory)
    config = json.loads((path / "config.json").read_text())
    model: nn.Module = timm.create_model(
        config["architecture"], pretrained_cfg_overlay=config["pretrained_cfg"], **config["model_args"]
    )
    resize_(model, config["compression"])
    attentions: list[Any] = [module for module in model.modules() if hasattr(module, "fused_attn")]
    for attention in attentions:
        attention.scale = attention.head_dim**-0.5  # what the fused path takes; the other one stores it
    model.load_state_dict(load_file(path / "model.safetensors"), assign=True)
    return model.eval()
