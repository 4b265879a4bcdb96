"""Which functions of a model become graphs: files that run without transformers, timm and upop.

A dual encoder gives its two towers, each with its projection, and both together; a BLIP for retrieval its matching
head too. A model that generates gives the towers and one pass of its decoder, without a cache of keys and values: the
loop over tokens is the caller's. Every other model is one graph.

Texts always come with a mask. Where a tokenizer gives none (SigLIP's, which pads every text to the full length and has
the padding read too), the mask is 1 everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from upop.export.graphs import modules as m
from upop.export.graphs.ports import Graph, Output, Port, Words
from upop.families import example_inputs

__all__ = ["Graph", "Output", "Port", "Words", "graphs_of"]

WHOLE = ("logits", "image_embeds", "text_embeds", "last_hidden_state")
"""Outputs of a model of one kind of input, the one that is meant first."""


def graphs_of(model: nn.Module) -> list[Graph]:
    """The graphs of a model.

    Args:
        model: Dense or cut, in evaluation mode. The modules of the graphs refer to it.

    Raises:
        ValueError: If it is not known what a model of this class takes.
    """
    kind = type(model).__name__
    if kind in BLIP:
        return BLIP[kind](_Shapes(model))
    if hasattr(model, "get_image_features") and hasattr(model, "get_text_features"):
        return _dual_encoder(_Shapes(model))
    takes = set(example_inputs(model)) if hasattr(model, "config") or hasattr(model, "patch_embed") else set()
    if takes in ({"x"}, {"pixel_values"}):
        return _images(_Shapes(model))
    if takes == {"input_ids"}:
        return _texts(_Shapes(model))
    known = "dual encoders, vision transformers and text encoders of transformers, ViTs of timm"
    raise ValueError(f"cannot make graphs of a {kind}; of {known} and {sorted(BLIP)} it can be done")


class _Shapes:
    """What the graphs of a model are described by."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        config: Any = getattr(model, "config", None)
        shapes = {name: tuple(value.shape[1:]) for name, value in example_inputs(model).items()}
        self.image: tuple[int, ...] = shapes.get("pixel_values", shapes.get("x", ()))
        self.words: Words | None = None
        if "input_ids" in shapes:
            self.words = _words(getattr(config, "text_config", config), *shapes["input_ids"])

    def graph(self, name: str, module: nn.Module, inputs: list[Port], outputs: list[Output]) -> Graph:
        """A graph; its words are the model's, if it takes tokens or a mask over them."""
        texts = any(port.kind in ("ids", "mask") for port in inputs)
        return Graph(name, module, tuple(inputs), tuple(outputs), self.words if texts else None)

    def images(self, count: str = "batch") -> Port:
        """Images, as many as ``count``."""
        return Port("pixel_values", (count, *self.image), "images")


def _words(config: Any, longest: int) -> Words:  # noqa: ANN401 (a Hugging Face config)
    """The tokens of a text tower; a mark that its config lacks, or puts past the last one, is token 0."""
    count = int(config.vocab_size)
    end, pad = (getattr(config, name, None) for name in ("eos_token_id", "pad_token_id"))
    if config.model_type.startswith("clip") and end == 2:
        end = count - 1  # such a CLIP takes the last of its tokens for the end, whatever its config says
    known = [mark if isinstance(mark, int) and 0 <= mark < count else 0 for mark in (end, pad)]
    return Words(count, longest, *known)


def _tokens(count: str = "batch") -> list[Port]:
    """Texts and their mask, as many as ``count``."""
    shape = (count, "text_length")
    return [Port("input_ids", shape, "ids"), Port("attention_mask", shape, "mask")]


def _dual_encoder(of: _Shapes) -> list[Graph]:
    image, text = Output("image_embeds", ("images",), True), Output("text_embeds", ("texts",), True)
    logits = [Output("logits_per_image", ("images", "texts"))] if hasattr(of.model, "logit_scale") else []
    return [
        of.graph("image", m.ImageEmbeds(of.model), [of.images("images")], [image]),
        of.graph("text", m.TextEmbeds(of.model), _tokens("texts"), [text]),
        of.graph("model", m.Pairs(of.model), [of.images("images"), *_tokens("texts")], [image, text, *logits]),
    ]


def _retrieval(of: _Shapes) -> list[Graph]:
    scores = Output("itm_score", ("batch",))
    matching = of.graph("matching", m.Matching(of.model), [of.images(), *_tokens()], [scores])
    return [*_dual_encoder(of), matching]


def _states(of: _Shapes) -> tuple[Graph, Port]:
    """The graph of a vision tower whose states another graph takes, and that other graph's input."""
    config: Any = of.model.config
    vision = config.vision_config
    tokens = (vision.image_size // vision.patch_size) ** 2 + 1
    taken = Port("image_states", ("batch", tokens, vision.hidden_size), "states")
    return of.graph("image", m.ImageStates(of.model), [of.images()], [Output("image_states", ("batch",))]), taken


def _answering(of: _Shapes) -> list[Graph]:
    config: Any = of.model.config
    image, states = _states(of)
    question = Port("question_states", ("batch", "text_length", config.text_config.hidden_size), "states")
    answer = Port("decoder_input_ids", ("batch", "answer_length"), "ids")
    read, written = Output(question.name, ("batch", "text_length")), Output("logits", ("batch", "answer_length"))
    return [
        image,
        of.graph("question", m.Question(of.model), [states, *_tokens()], [read]),
        of.graph("answer", m.Answer(of.model), [question, _tokens()[1], answer], [written]),
    ]


def _captioning(of: _Shapes) -> list[Graph]:
    image, states = _states(of)
    written = Output("logits", ("batch", "text_length"))
    return [image, of.graph("caption", m.Caption(of.model), [states, *_tokens()], [written])]


def _reasoning(of: _Shapes) -> list[Graph]:
    return [of.graph("model", m.Statement(of.model), [of.images(), *_tokens()], [Output("logits", ("batch",))])]


def _images(of: _Shapes) -> list[Graph]:
    image = torch.zeros(1, *of.image)
    name, _ = _said(of.model, of.model(image), "logits" if getattr(of.model, "num_classes", 0) else "features")
    return [of.graph("model", m.ImageModel(of.model, name), [of.images()], [Output(name, ("batch",))])]


def _texts(of: _Shapes) -> list[Graph]:
    name, value = _said(of.model, of.model(input_ids=torch.zeros(1, 1, dtype=torch.long)), "logits")
    varies = ("batch", "text_length")[: value.dim() - 1]  # of every token, or of the whole text
    return [of.graph("model", m.TextModel(of.model, name), _tokens(), [Output(name, varies)])]


def _said(model: nn.Module, outputs: Any, alone: str) -> tuple[str, Tensor]:  # noqa: ANN401 (whatever a model gives)
    """What a model is asked for, by name; ``alone`` is the name of an output that is nothing but a tensor."""
    if isinstance(outputs, Tensor):
        return alone, outputs
    for name in WHOLE:
        if isinstance(outputs.get(name), Tensor):
            return name, outputs[name]
    raise ValueError(f"cannot make a graph of a {type(model).__name__}: it gives {sorted(outputs)}, none of {WHOLE}")


BLIP: dict[str, Callable[[_Shapes], list[Graph]]] = {
    "BlipForImageTextRetrieval": _retrieval,
    "BlipForQuestionAnswering": _answering,
    "BlipForConditionalGeneration": _captioning,
    "BlipForVisualReasoning": _reasoning,
}
