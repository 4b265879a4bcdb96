"""Load dense models and feed them: what differs between the architectures when they are not being cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from upop.messages import closest


def load_dense(checkpoint: str, from_scratch: bool = False) -> tuple[nn.Module, Any]:
    """Load a dense model and its processor.

    Args:
        checkpoint: Hugging Face model directory or hub name; ``timm/NAME`` for a timm ViT with its
            pretrained weights.
        from_scratch: Build the architecture from its config with random weights instead of loading any.

    Returns:
        The model in evaluation mode, fp32, and its processor (``None`` for a timm model).

    Raises:
        FileNotFoundError: If a path was given and there is nothing there, or no config.json in it.
        ValueError: If the weights lack keys of the model or have others.
    """
    if checkpoint.startswith("timm/"):
        return _load_timm(checkpoint.removeprefix("timm/"), pretrained=not from_scratch), None
    _check_path(checkpoint)
    from transformers import AutoConfig, AutoModel, AutoProcessor

    if not Path(checkpoint).is_dir():
        try:
            AutoConfig.from_pretrained(checkpoint)  # one question to the hub; a processor asks for many files
        except (OSError, ValueError) as error:
            raise ValueError(
                f"no model {checkpoint!r} on the Hugging Face hub or in its cache: {_first_line(error)}; give a "
                "directory, or a hub name such as 'openai/clip-vit-base-patch32'"
            ) from error
    try:
        processor = AutoProcessor.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        raise ValueError(f"no processor at {checkpoint!r}: {_first_line(error)}") from error
    if from_scratch:
        model = AutoModel.from_config(AutoConfig.from_pretrained(checkpoint)).float()
        return model.eval(), processor
    try:
        model, info = AutoModel.from_pretrained(
            checkpoint, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"no weights at {checkpoint!r}: {_first_line(error)}; for random ones set from_scratch"
        ) from error
    _check_keys(checkpoint, info)
    return model.eval(), processor


def build_dense(checkpoint: str) -> nn.Module:
    """Build the dense architecture of a checkpoint, its weights not initialised: what can be cut needs no weights.

    Args:
        checkpoint: Directory with a config.json (of a Hugging Face model, or one that :func:`describe` wrote), hub
            name, or ``timm/NAME``.

    Raises:
        FileNotFoundError: If a path was given and there is nothing there, or no config.json in it.
        ValueError: If timm has no such model.
    """
    if checkpoint.startswith("timm/"):
        return _load_timm(checkpoint.removeprefix("timm/"), pretrained=False)
    _check_path(checkpoint)
    file = Path(checkpoint) / "config.json"
    config = json.loads(file.read_text()) if file.is_file() else {}
    if "architecture" in config:
        return _create_timm(config["architecture"], False, **config.get("model_args", {}))
    import transformers
    from transformers.initialization import no_init_weights

    loaded = transformers.AutoConfig.from_pretrained(checkpoint)
    built = getattr(transformers, (loaded.architectures or [""])[0], None)
    with no_init_weights():
        model: nn.Module = built(loaded) if built is not None else transformers.AutoModel.from_config(loaded)
    return model.eval()


def describe(model: nn.Module) -> dict[str, Any]:
    """What config.json has to say for :func:`build_dense` to build the dense architecture of ``model`` again.

    Raises:
        ValueError: If ``model`` is neither from transformers nor made by ``timm.create_model``.
    """
    config: Any = getattr(model, "config", None)
    if config is not None and hasattr(config, "to_json_string"):
        found = json.loads(config.to_json_string(use_diff=False), object_hook=_without_path)
        return dict(found) | {"architectures": [type(model).__name__]}
    facts: Any = getattr(model, "pretrained_cfg", None) or {}
    if not facts.get("architecture"):
        raise ValueError(
            f"cannot describe a {type(model).__name__}: it is neither from transformers nor made by timm.create_model"
        )
    patches: Any = model.get_submodule("patch_embed")
    arguments = {"num_classes": getattr(model, "num_classes", 0), "img_size": list(patches.img_size)}
    return {"architecture": facts["architecture"], "model_args": arguments}


def _without_path(config: dict[str, Any]) -> dict[str, Any]:
    """A config without the place that it was loaded from, which is nobody else's business."""
    return {key: value for key, value in config.items() if key != "_name_or_path"}


def _load_timm(name: str, pretrained: bool) -> nn.Module:
    import timm

    if name.partition(".")[0] not in timm.list_models():
        raise ValueError(f"timm has no model {name!r}{closest(name, timm.list_models(['vit*', 'deit*']))}")
    try:
        return _create_timm(name, pretrained).eval()
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"no weights for timm model {name!r}: {_first_line(error)}; for random ones set from_scratch"
        ) from error


def _create_timm(name: str, pretrained: bool, **arguments: Any) -> nn.Module:  # noqa: ANN401 (timm's own)
    import timm

    model: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
    return model


def _check_path(checkpoint: str) -> None:
    """Say at once that a path is wrong, before a hub is asked for it."""
    path = Path(checkpoint)
    looks_like_path = checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") > 1 or path.exists()
    if looks_like_path and not path.is_dir():
        raise FileNotFoundError(
            f"no checkpoint directory at {checkpoint!r}; give a directory with config.json or a hub name"
        )
    if path.is_dir() and not (path / "config.json").is_file():
        found = sorted(entry.name for entry in path.iterdir())[:5]
        raise FileNotFoundError(
            f"no config.json in {checkpoint!r} (it holds {found}); is it a Hugging Face model directory?"
        )


def _check_keys(checkpoint: str, info: dict[str, Any]) -> None:
    """Refuse weights that do not fill the model or that it has no place for."""
    mismatched = sorted(str(entry[0]) for entry in info.get("mismatched_keys", ()))
    for what, keys in (
        ("lacks", sorted(info.get("missing_keys", ()))),
        ("has unexpected", sorted(info.get("unexpected_keys", ()))),
        ("has other shapes for", mismatched),
    ):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise ValueError(
                f"checkpoint {checkpoint!r} {what} weights {keys[:3]}{more}; is it complete, and does its config.json "
                "belong to it?"
            )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def example_inputs(model: nn.Module, text_length: int | None = None) -> dict[str, Tensor]:
    """One sample of the shapes that ``model`` takes, on the meta device, for counting FLOPs.

    Args:
        model: A supported model.
        text_length: Tokens of a text; by default as many as the model has positions for (at most 512).

    Returns:
        Keyword arguments: ``pixel_values (1, 3, H, W)`` and ``input_ids (1, L)`` as far as the model takes them;
        ``x`` for a timm model.
    """
    config = getattr(model, "config", None)
    if config is None or isinstance(config, dict):
        patches: Any = model.get_submodule("patch_embed")
        return {"x": torch.zeros(1, patches.proj.in_channels, *patches.img_size, device="meta")}
    vision = getattr(config, "vision_config", config if hasattr(config, "patch_size") else None)
    text = getattr(config, "text_config", config if hasattr(config, "vocab_size") else None)
    inputs: dict[str, Tensor] = {}
    if text is not None:
        length = text_length or min(512, text.max_position_embeddings)
        inputs["input_ids"] = torch.zeros(1, length, dtype=torch.long, device="meta")
    if vision is not None:
        size = vision.image_size
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        inputs["pixel_values"] = torch.zeros(1, vision.num_channels, height, width, device="meta")
    return inputs


def image_features(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """Projected image features of a dual encoder, not normalised, ``(B, D)``, for images ``(B, 3, H, W)``."""
    encoder: Any = model
    return _pooled(encoder.get_image_features(pixel_values=pixel_values))


def text_features(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Projected text features of a dual encoder, not normalised, ``(B, D)``, for tokens ``(B, L)``."""
    encoder: Any = model
    return _pooled(encoder.get_text_features(input_ids=input_ids, attention_mask=attention_mask))


def _pooled(output: Any) -> Tensor:  # noqa: ANN401 (a tensor or a Hugging Face output)
    return output if isinstance(output, Tensor) else output.pooler_output
