"""Load dense models and feed them: what differs between the architectures when they are not being cut."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from upop.messages import closest

BLIP_CLASSES = ("BlipForConditionalGeneration", "BlipForImageTextRetrieval", "BlipForQuestionAnswering")
PATHS = (".", "/", "~", "checkpoints/")
"""Beginnings of a path, for which no hub is asked; the recipes' own checkpoints are made by hand."""
ANSWER_LENGTH = 4
"""Tokens that a VQA decoder is costed with: its start token, an answer of two word pieces and the end."""


def load_dense(checkpoint: str, from_scratch: bool = False) -> tuple[nn.Module, Any]:
    """Load a dense model and its processor.

    The class is the one that config.json names first among its ``architectures``, or the usual one for its
    ``model_type``; BLIP's vision attention is swapped for one that can be cut.

    Args:
        checkpoint: Hugging Face model directory or hub name; ``timm/NAME`` for a timm ViT with its
            pretrained weights.
        from_scratch: Build the architecture from its config with random weights instead of loading any.

    Returns:
        The model in evaluation mode, fp32, and its processor (``None`` for a timm model).

    Raises:
        FileNotFoundError: If a path was given and there is nothing there, or no config.json in it.
        ValueError: If the weights lack keys of the model or have others, or a BLIP's config does not name one of the
            task classes.
    """
    if checkpoint.startswith("timm/"):
        return _load_timm(checkpoint.removeprefix("timm/"), pretrained=not from_scratch), None
    _check_path(checkpoint)
    from transformers import AutoProcessor

    config = _config(checkpoint)
    built = _model_class(checkpoint, config)
    try:
        processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"no processor at {checkpoint!r}: {_first_line(error)}") from error
    if from_scratch:
        return _ready(_untrained(built, config)), processor
    try:
        model, info = built.from_pretrained(
            checkpoint,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            weights_only=True,
            trust_remote_code=False,
        )
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"no weights at {checkpoint!r}: {_first_line(error)}; for random ones set from_scratch"
        ) from error
    _check_keys(checkpoint, info)
    return _ready(model), processor


def _config(checkpoint: str) -> Any:  # noqa: ANN401 (any Hugging Face config)
    """The configuration of a checkpoint: one question to the hub, where a processor asks for many files."""
    from transformers import AutoConfig

    importlib.import_module(f"{__package__}.blip_nlvr")  # tells transformers of the model that it lacks
    try:
        return AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if Path(checkpoint).is_dir():
            raise ValueError(f"config.json in {checkpoint!r} cannot be used: {_first_line(error)}") from error
        raise ValueError(
            f"no model {checkpoint!r} on the Hugging Face hub or in its cache: {_first_line(error)}; give a "
            "directory, or a hub name such as 'openai/clip-vit-base-patch32'"
        ) from error


def _model_class(checkpoint: str, config: Any) -> Any:  # noqa: ANN401 (a Hugging Face config and model class)
    """The class that a config says its weights are of; where it names none, AutoModel, which chooses.

    Raises:
        ValueError: If a BLIP is of no class that can be compressed, or VQA's decoder would not fit its encoder.
    """
    import transformers

    from upop.families.blip_nlvr import BlipForVisualReasoning, BlipNlvrConfig

    name = (config.architectures or [""])[0]
    if config.model_type == "blip":
        if name not in BLIP_CLASSES:
            raise ValueError(
                f"{checkpoint!r} is a BLIP of architecture {name!r}; 'architectures' in its config.json has to name "
                f"the task class that its weights are of: one of {list(BLIP_CLASSES)}"
            )
        images, text = config.vision_config.hidden_size, config.text_config.hidden_size
        if name == "BlipForQuestionAnswering" and images != text:
            raise ValueError(
                f"{checkpoint!r} has images of width {images} and text of width {text}; BlipForQuestionAnswering of "
                "transformers needs one width: it builds the decoder for the images' but lets it attend to the question"
            )
    if config.model_type == BlipNlvrConfig.model_type:
        return BlipForVisualReasoning
    return getattr(transformers, name or "AutoModel", transformers.AutoModel)


def _untrained(built: Any, config: Any) -> nn.Module:  # noqa: ANN401 (what _model_class returned, a Hugging Face config)
    """A model of this class in fp32, with the weights that it is born with."""
    model: nn.Module = built.from_config(config) if hasattr(built, "from_config") else built(config)
    return model.float()


def _ready(model: nn.Module) -> nn.Module:
    """A model as everything else expects it: in evaluation mode, and with attentions that can be cut."""
    from upop.families.blip_attention import swap_attention_

    swap_attention_(model)
    return model.eval()


def build_dense(checkpoint: str) -> nn.Module:
    """Build the dense architecture of a checkpoint, its weights not initialised: what can be cut needs no weights.

    Args:
        checkpoint: Directory with a config.json (of a Hugging Face model, or one that :func:`describe` wrote), hub
            name, or ``timm/NAME``.

    Raises:
        FileNotFoundError: If a path was given and there is nothing there, or no config.json in it.
        ValueError: If timm has no such model, or as :func:`load_dense` about its config.
    """
    if checkpoint.startswith("timm/"):
        return _load_timm(checkpoint.removeprefix("timm/"), pretrained=False)
    _check_path(checkpoint)
    file = Path(checkpoint) / "config.json"
    config = json.loads(file.read_text()) if file.is_file() else {}
    if "architecture" in config:
        return _create_timm(config["architecture"], False, **config.get("model_args", {}))
    from transformers.initialization import no_init_weights

    loaded = _config(checkpoint)
    with no_init_weights():
        return _ready(_untrained(_model_class(checkpoint, loaded), loaded))


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


def looks_like_path(checkpoint: str) -> bool:
    """Whether a checkpoint is meant to be a directory, there or not, and not a name on a hub."""
    path = Path(checkpoint)
    beside = len(path.parts) == 2 and path.parent.is_dir()
    return checkpoint.startswith(PATHS) or checkpoint.count("/") > 1 or path.exists() or beside


def _check_path(checkpoint: str) -> None:
    """Say at once that a path is wrong, before a hub is asked for it."""
    path = Path(checkpoint)
    if looks_like_path(checkpoint) and not path.is_dir():
        made = "; `upop import` makes one of its authors' file" if checkpoint.startswith("checkpoints/") else ""
        if path.parts[-2:] == ("finetune", "model"):
            made = "; `upop finetune` with the recipe of that run makes it"
        raise FileNotFoundError(
            f"no checkpoint directory at {checkpoint!r}; give a directory with config.json or a hub name{made}"
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

    A sample is what one forward pass of the task takes: for BLIP retrieval an image and a text to be matched, for VQA
    an image, a question and an answer of :data:`ANSWER_LENGTH` tokens, for captioning an image and a caption, for
    visual reasoning two images and a statement.

    Args:
        model: A supported model.
        text_length: Tokens of a text; by default as many as the model has positions for (at most 512).

    Returns:
        Keyword arguments: ``pixel_values (1, 3, H, W)``, ``(1, 2, 3, H, W)`` for visual reasoning, ``input_ids (1, L)``
        and ``decoder_input_ids (1, A)`` as far as the model takes them; ``x`` for a timm model.
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
        if type(model).__name__ == "BlipForQuestionAnswering":
            inputs["decoder_input_ids"] = inputs["input_ids"].new_zeros(1, ANSWER_LENGTH)
    if vision is not None:
        size = vision.image_size
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        images = (1, 2) if config.model_type == "blip_nlvr" else (1,)
        channels = getattr(vision, "num_channels", 3)  # BLIP's are always coloured
        inputs["pixel_values"] = torch.zeros(*images, channels, height, width, device="meta")
    return inputs


def image_features(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """Projected image features of a dual encoder or a BLIP retrieval model, not normalised.

    Args:
        model: Model with a projection to the space that it shares with texts.
        pixel_values: Images, ``(B, 3, H, W)``.

    Returns:
        Features, ``(B, D)``.
    """
    encoder: Any = model
    if type(model).__name__ == "BlipForImageTextRetrieval":
        projected: Tensor = encoder.vision_proj(encoder.vision_model(pixel_values).last_hidden_state[:, 0])
        return projected
    return _pooled(encoder.get_image_features(pixel_values=pixel_values))


def text_features(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Projected text features of a dual encoder or a BLIP retrieval model, not normalised.

    Args:
        model: Model with a projection to the space that it shares with images.
        input_ids: Tokens, ``(B, L)``.
        attention_mask: 1 where a token counts, ``(B, L)``; by default all do.

    Returns:
        Features, ``(B, D)``.
    """
    encoder: Any = model
    if type(model).__name__ == "BlipForImageTextRetrieval":
        states = encoder.text_encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        projected: Tensor = encoder.text_proj(states[:, 0])
        return projected
    return _pooled(encoder.get_text_features(input_ids=input_ids, attention_mask=attention_mask))


def _pooled(output: Any) -> Tensor:  # noqa: ANN401 (a tensor or a Hugging Face output)
    return output if isinstance(output, Tensor) else output.pooler_output
