"""Functions of a model as modules whose arguments are tensors alone, which is what torch.export can follow.

The sizes of the arguments are those of :mod:`upop.export.graphs.ports`. Shapes: ``B`` samples, ``I`` images, ``T``
texts, ``L`` tokens of a text, ``A`` tokens of an answer, ``N`` tokens of an image, ``S`` pixels along a side, ``D``
width of the space that images and texts share, ``V``/``W`` width of the vision tower and of the text encoder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upop.families import image_features, text_features


class Part(nn.Module):
    """A function of a model.

    Args:
        model: The model; it is neither copied nor changed.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model


class ImageEmbeds(Part):
    """Images in the space that they share with texts."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Images ``(I, 3, S, S)`` to embeddings of length 1, ``(I, D)``."""
        return _unit(image_features(self.model, pixel_values))


class TextEmbeds(Part):
    """Texts in the space that they share with images."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Texts ``(T, L)`` to embeddings of length 1, ``(T, D)``."""
        return _unit(text_features(self.model, input_ids, attention_mask))


class Pairs(Part):
    """Every image against every text."""

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Images and texts to both embeddings and, if the model has a scale, the logits ``(I, T)``."""
        image = _unit(image_features(self.model, pixel_values))
        text = _unit(text_features(self.model, input_ids, attention_mask))
        if not hasattr(self.model, "logit_scale"):
            return image, text
        logits = image @ text.T * self.model.logit_scale.exp() + getattr(self.model, "logit_bias", 0)
        return image, text, logits


class Matching(Part):
    """BLIP's head that looks at an image and a text together."""

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Images ``(B, 3, S, S)`` and texts ``(B, L)`` to logits ``(B, 2)``: does not match, matches."""
        scored = self.model(pixel_values=pixel_values, input_ids=input_ids, attention_mask=attention_mask)
        logits: Tensor = scored.itm_score
        return logits


class ImageStates(Part):
    """BLIP's vision tower."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Images ``(B, 3, S, S)`` to states ``(B, N, V)``."""
        states: Tensor = self.model.vision_model(pixel_values=pixel_values).last_hidden_state
        return states


class Question(Part):
    """BLIP's encoder of a question about an image."""

    def forward(self, image_states: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """States of images ``(B, N, V)`` and questions ``(B, L)`` to states ``(B, L, W)``."""
        encoded = self.model.text_encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=image_states,
            encoder_attention_mask=_all_of(image_states),
        )
        states: Tensor = encoded.last_hidden_state
        return states


class Answer(Part):
    """BLIP's decoder of an answer, all tokens at once: no keys and values are carried from step to step."""

    def forward(self, question_states: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor) -> Tensor:
        """States of questions ``(B, L, W)``, their mask and answers ``(B, A)`` to logits ``(B, A, words)``."""
        decoded = self.model.text_decoder(
            input_ids=decoder_input_ids,
            encoder_hidden_states=question_states,
            encoder_attention_mask=attention_mask,
            use_cache=False,
        )
        logits: Tensor = decoded.logits
        return logits


class Caption(Part):
    """BLIP's decoder of a caption, all tokens at once: no keys and values are carried from step to step."""

    def forward(self, image_states: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """States of images ``(B, N, V)`` and captions ``(B, L)`` to logits ``(B, L, words)``."""
        decoded = self.model.text_decoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=image_states,
            encoder_attention_mask=_all_of(image_states),
            use_cache=False,
        )
        logits: Tensor = decoded.logits
        return logits


class Statement(Part):
    """BLIP for visual reasoning."""

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Two images ``(B, 2, 3, S, S)`` and a statement ``(B, L)`` to logits ``(B, 2)``: false, true."""
        judged = self.model(pixel_values=pixel_values, input_ids=input_ids, attention_mask=attention_mask)
        logits: Tensor = judged.logits
        return logits


class Whole(Part):
    """All of a model that takes images alone or texts alone.

    Args:
        model: From transformers or timm.
        output: Which of its outputs, if it gives more than a tensor.
    """

    def __init__(self, model: nn.Module, output: str) -> None:
        super().__init__(model)
        self.output = output


class ImageModel(Whole):
    """A model of images."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Images ``(B, 3, S, S)`` to what the model says of them."""
        return _one(self.model(pixel_values), self.output)


class TextModel(Whole):
    """A model of texts."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Texts ``(B, L)`` to what the model says of them."""
        return _one(self.model(input_ids=input_ids, attention_mask=attention_mask), self.output)


def _unit(features: Tensor) -> Tensor:
    """Features at length 1."""
    return F.normalize(features, dim=-1)


def _one(outputs: Any, name: str) -> Tensor:  # noqa: ANN401 (a tensor or a Hugging Face output)
    value: Tensor = outputs if isinstance(outputs, Tensor) else outputs[name]
    return value


def _all_of(states: Tensor) -> Tensor:
    """A mask over states ``(B, N, V)`` of which every one counts, ``(B, N)``."""
    return torch.ones(states.shape[:-1], dtype=torch.long, device=states.device)
