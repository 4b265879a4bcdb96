"""BLIPs for questions and for two images, made of one that has learned which texts belong to which images.

BLIP's authors begin to train them with pre-trained towers; of what Hugging Face holds of those, the model for retrieval
is the nearest. Both begin with its towers. For questions the decoder begins with the text encoder's weights, most of
which they share in pre-training. For two images both cross-attentions of a layer begin as the one that was; what merges
them and the head that judges are new.

Source: models/blip_vqa.py, blip_pretrain.py and blip_nlvr.py of https://github.com/salesforce/BLIP.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BlipForImageTextRetrieval, BlipForQuestionAnswering

from upop.families.blip_attention import swap_attention_
from upop.families.blip_nlvr import BlipForVisualReasoning, BlipNlvrConfig
from upop.families.salesforce import leftovers, to_salesforce

TWINS = (".crossattention.self.", ".crossattention.output.dense.")
"""Parts of a text layer that there are two of for two images."""
TOWERS = ("vision_model.", "text_encoder.")


def can_grow(model: nn.Module) -> bool:
    """Whether another can be made of this model: whether it is a BLIP for retrieval."""
    return isinstance(model, BlipForImageTextRetrieval)


def answering(model: nn.Module) -> nn.Module:
    """A ``BlipForQuestionAnswering`` with the towers of a BLIP for retrieval; only the head over the words is new.

    Args:
        model: A ``BlipForImageTextRetrieval``, dense; on the meta device, so is what is made of it.

    Raises:
        ValueError: If ``model`` is another, or its towers differ in width.
    """
    config = _config(model, "BlipForQuestionAnswering")
    images, text = config.vision_config.hidden_size, config.text_config.hidden_size
    if images != text:
        raise ValueError(
            f"the model has images of width {images} and text of width {text}; BlipForQuestionAnswering needs one width"
        )
    config.architectures = ["BlipForQuestionAnswering"]
    weights = {name: weight for name, weight in model.state_dict().items() if name.startswith(TOWERS)}
    begins = "text_encoder."
    decoder = {name.replace(begins, "text_decoder.bert.", 1): weight.clone() for name, weight in weights.items()
               if name.startswith(begins)}  # fmt: skip
    head = "text_decoder.cls.predictions."
    return _built(BlipForQuestionAnswering, config, weights | decoder, new=(head,), like=model)


def reasoning(model: nn.Module) -> nn.Module:
    """A ``BlipForVisualReasoning`` with the towers of a BLIP for retrieval; its merging layers and its head are new.

    Args:
        model: A ``BlipForImageTextRetrieval``, dense; on the meta device, so is what is made of it.

    Raises:
        ValueError: If ``model`` is another.
    """
    config = _config(model, "BlipForVisualReasoning")
    parts = {"vision_config": config.vision_config, "text_config": config.text_config}
    made = BlipNlvrConfig(**parts, initializer_range=config.text_config.initializer_range)
    return _built(
        BlipForVisualReasoning, made, dict(_doubled(model.state_dict())), ("cls_head.", "merge_layer."), model
    )


def _config(model: nn.Module, wanted: str) -> Any:  # noqa: ANN401 (a BlipConfig)
    """A copy of the configuration of a BLIP for retrieval."""
    if not can_grow(model):
        raise ValueError(
            f"{type(model).__name__} cannot become a {wanted}; a BlipForImageTextRetrieval can, such as "
            "'Salesforce/blip-itm-base-coco'"
        )
    return copy.deepcopy(model.config)


def _built(made: Any, config: Any, weights: Mapping[str, Tensor], new: tuple[str, ...], like: nn.Module) -> nn.Module:  # noqa: ANN401
    """A model of the class ``made`` with these weights; all that is called otherwise than ``new`` has to be there."""
    meta = next(like.parameters()).is_meta
    with torch.device("meta" if meta else "cpu"):
        model: nn.Module = made(config)
    swap_attention_(model)
    left = model.load_state_dict(weights, strict=False, assign=meta)
    lacking = [name for name in left.missing_keys if not any(part in name for part in new)]
    if lacking or left.unexpected_keys:
        raise ValueError(f"weights of another layout: lacking {lacking[:3]}, left over {left.unexpected_keys[:3]}")
    return model.eval()


def _doubled(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Weights of both towers by the authors' names, those of the twins twice."""
    towers = {name: weight for name, weight in state.items() if name.startswith(TOWERS)}
    named = to_salesforce(towers)
    for name in leftovers(named):
        del named[name]
    for name, weight in named.items():
        twin = next((part for part in TWINS if part in name), None)
        if twin is None:
            yield name, weight
        else:
            yield from ((name.replace(twin, f"{twin[:-1]}{number}."), weight.clone()) for number in range(2))
