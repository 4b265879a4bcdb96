"""A CLIP with OpenAI's names: OpenAI's own weights, open_clip's, and those of UPop's authors, dense or compressed.

What neither names nor shapes show comes from the model that lends its configuration: the number of heads, the
activation (OpenAI's weights are for QuickGELU), the epsilon of the norms, and that an open_clip model takes the state
of the first token of an image, unpooled. The state of a text is the one at its highest token, so the configuration
must name that one as the end of a text.

UPop's authors attend at the scale of the cut head size in both towers, in the retraining and in the evaluation: their
attention is PyTorch's, made to go by the width of the projected queries.

Source: clip/mock.py and clip/model.py of https://github.com/sdc17/UPop. The layout of compressed files is what this
code saves; no released file was at hand.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from upop.families import build_dense
from upop.families.openai_clip import leftovers, openai_name, to_hugging_face
from upop.structure import Site

EXAMPLE = "openai/clip-vit-large-patch14-336"
ARGMAX = 2
"""The end of a text in Hugging Face's older configurations, which their code reads as the highest token of it."""


class Clip:
    """A checkpoint of a CLIP.

    Args:
        file: Its path, for messages.
        state: What it holds.

    Attributes:
        task: What :class:`~upop.export.importing.checkpoint.Imported` calls it.
        weights: Weights by the names of the model to write.
        dropped: Names of what is left behind.
        temperature: Always ``None``: CLIP's is one of its weights.
        positions: Name of the position embeddings of the vision tower, which differ with the image size.

    Raises:
        ValueError: If its towers are not transformers of OpenAI's kind.
    """

    task = "clip"
    temperature = None
    positions = "vision_model.embeddings.position_embedding.weight"

    def __init__(self, file: str, state: dict[str, Tensor]) -> None:
        self.file = file
        self.weights = to_hugging_face(state)
        self.dropped = leftovers(state)

    @staticmethod
    def named(name: str) -> str:
        """The name that a weight has in the file."""
        return openai_name(name)

    def architecture(self, like: str) -> tuple[Callable[[Any], nn.Module], Any]:
        """The class of the model to write, and a copy of the configuration that ``like`` lends.

        Raises:
            ValueError: If ``like`` is no CLIP.
        """
        model = build_dense(like)
        name = type(model).__name__
        if name != "CLIPModel":
            raise ValueError(
                f"{self.file!r} is a CLIP, --like {like!r} is a {name}; give a directory or hub name of a CLIP, such "
                f"as {EXAMPLE!r}"
            )
        return type(model), copy.deepcopy(model.config)

    def configure(self, like: str, config: Any) -> list[str]:  # noqa: ANN401 (CLIP's)
        """Say what is taken from ``like`` that the weights do not show.

        Raises:
            ValueError: If it takes the state of a text from another place than OpenAI's code.
        """
        end, words = config.text_config.eos_token_id, config.text_config.vocab_size
        if end not in (ARGMAX, words - 1):
            raise ValueError(
                f"--like {like!r} takes the state of a text at token {end} (eos_token_id of its text_config), OpenAI's "
                f"CLIP at the highest one, which is {words - 1}; give a --like with the tokenizer of CLIP"
            )
        notes = []
        for part in ("vision_config", "text_config"):
            said = getattr(config, part)
            heads = said.num_attention_heads
            notes.append(
                f"{part} says {heads} heads of {said.hidden_size // heads}, {said.hidden_act}, and layer_norm_eps "
                f"{said.layer_norm_eps}: the file does not show these"
            )
        where = "its highest token" if end == ARGMAX else f"token {end}"
        return [*notes, f"the processor is that of --like, and the state of a text is the one at {where}"]

    @staticmethod
    def fit_processor(like: str, processor: Any, config: Any) -> list[str]:  # noqa: ANN401 (CLIP's)
        """Let the processor make images of the size that the model takes; say so where they were of another."""
        images, side = processor.image_processor, config.vision_config.image_size
        cropped = bool(getattr(images, "do_center_crop", False))
        size = images.crop_size if cropped else images.size
        if (size.get("height"), size.get("width")) == (side, side):
            return []
        square = {"height": side, "width": side}
        images.size = {"shortest_edge": side} if cropped else square
        if cropped:
            images.crop_size = square
        return [f"the processor makes images of {side} pixels"]

    @staticmethod
    def at_cut_scale(sites: Sequence[Site]) -> list[Site]:
        """The sites whose attention the authors' code runs at the scale of the cut head size: all."""
        return list(sites)

    @staticmethod
    def cut_notes(cut: Sequence[Site]) -> list[str]:
        """What a reader should know of a model in which these sites are cut: nothing more."""
        return []
