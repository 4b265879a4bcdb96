"""A tiny recipe over the built-in data, for tests that run whole phases in seconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    PreTrainedModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
    ViTConfig,
    ViTImageProcessor,
)

from upop.cli import build_parser, parse, recipe_of
from upop.runs import Recipe

SHAPES = Path(__file__).parent.parent / "configs" / "models" / "shapes"


def tiny_checkpoint(directory: Path, seed: int = 0) -> Path:
    """A CLIP of a few thousand parameters with the processor of the built-in data."""
    shutil.copytree(SHAPES, directory)
    config = json.loads((SHAPES / "config.json").read_text())
    config["projection_dim"] = 16
    for tower in ("vision_config", "text_config"):
        config[tower] |= {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    (directory / "config.json").write_text(json.dumps(config))
    torch.manual_seed(seed)
    AutoModel.from_config(AutoConfig.from_pretrained(directory)).save_pretrained(directory)
    return directory


def tiny_config(checkpoint: Path, run_dir: Path) -> dict[str, Any]:
    """A configuration whose search and retraining take seconds."""
    return {
        "seed_everything": 1,
        "run_dir": str(run_dir),
        "model": {"class_path": "upop.tasks.Retrieval", "init_args": {"checkpoint": str(checkpoint)}},
        "data": {
            "class_path": "upop.data.ShapesRetrieval",
            "init_args": {
                "train_scenes": 24,
                "val_scenes": 4,
                "test_scenes": 8,
                "batch_size": 6,
                "num_workers": 0,
                "augment": "none",
            },
        },
        "search": {"removed": 0.5, "epochs": 2, "interval": 2, "lr": 1e-3, "tolerance": 0.02},
        "retrain": {"epochs": 1, "lr": 1e-3},
        "measure": {"batch_size": 2, "seconds": 0.0},
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "limit_val_batches": 0,
            "enable_progress_bar": False,
            "log_every_n_steps": 1,
        },
    }


def write(config: dict[str, Any], path: Path) -> Path:
    """Write a configuration as YAML."""
    path.write_text(yaml.safe_dump(config))
    return path


def recipe(config: dict[str, Any], path: Path) -> Recipe:
    """Parse and instantiate a configuration, as the command line does."""
    parser = build_parser()
    return recipe_of(parser, parse(parser, ["--config", str(write(config, path))]))


def other_checkpoint(directory: Path, name: str) -> Path:
    """A tiny SigLIP or ViT + BERT directory with a processor for the built-in data."""
    tokenizer = AutoTokenizer.from_pretrained(SHAPES)
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = vision | {"vocab_size": len(tokenizer), "max_position_embeddings": 32, "pad_token_id": 0}
    vision = vision | {"image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    size = {"height": 32, "width": 32}
    model: PreTrainedModel
    if name == "siglip":
        ids = {"bos_token_id": 1, "eos_token_id": 3, "projection_size": 16}
        model = SiglipModel(SiglipConfig(text_config=text | ids, vision_config=vision))
        SiglipProcessor(SiglipImageProcessor(size=size), tokenizer).save_pretrained(directory)
    else:
        config = VisionTextDualEncoderConfig.from_vision_text_configs(
            ViTConfig(**vision), BertConfig(**text), projection_dim=16
        )
        model = VisionTextDualEncoderModel(config)
        VisionTextDualEncoderProcessor(ViTImageProcessor(size=size), tokenizer).save_pretrained(directory)
    model.save_pretrained(directory)
    return directory
