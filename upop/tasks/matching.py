"""Image-text matching: hard negatives, the batch that is made of them, and the matching head's logits.

Source: BLIP, Li et al., ICML 2022, https://arxiv.org/abs/2201.12086, section 3.2 (ITM); ALBEF, Li et al., NeurIPS 2021,
https://arxiv.org/abs/2107.07651, section 3.3 (hard negatives).

Shapes: ``B`` samples of this rank, ``N`` samples to draw from (of this rank or of all), ``P`` pairs, ``L`` tokens,
``S`` image tokens, ``E`` and ``H`` width of image and text states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NO_NEGATIVE = -100
"""Label of a pair for which there was no negative; it adds nothing to the loss."""


@dataclass(frozen=True)
class MatchingPairs:
    """The pairs of a step: every sample's own, each text with a negative image, each image with a negative text.

    Attributes:
        image: Row of each pair's image among the candidates, ``(3B,)``.
        input_ids: Tokens of each pair's text, ``(3B, L)``.
        attention_mask: Which of them count, ``(3B, L)``.
        labels: 1 where they belong together, 0 where not, :data:`NO_NEGATIVE` where no negative was left, ``(3B,)``.
    """

    image: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


def draw_negatives(logits: Tensor, same: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw one negative per row, in proportion to the softmax of the row's logits over what is no positive.

    It takes the largest of the logits plus Gumbel noise, which draws as ``torch.multinomial`` does of the softmax, but
    has no underflow (a low temperature makes every negative's share of a softmax round to 0) and never waits for the
    device.

    Args:
        logits: Similarities over the temperature, ``(rows, N)``.
        same: Which candidates are positives of a row, and so never drawn, ``(rows, N)``, bool.
        generator: Where the noise comes from, on the device of ``logits``; by default torch's own.

    Returns:
        Number of the candidate drawn, ``(rows,)``; -1 where all are positives.
    """
    noise = torch.empty_like(logits, dtype=torch.float32).exponential_(generator=generator).log_().neg_()
    drawn = (logits.float() + noise).masked_fill(same, -torch.inf).argmax(1)
    return drawn.masked_fill(same.all(1), -1)


def matching_pairs(
    input_ids: Tensor, attention_mask: Tensor, negative_image: Tensor, negative_text: Tensor, rows: Tensor
) -> MatchingPairs:
    """Put positives and drawn negatives together, in this order: own pairs, negative images, negative texts.

    Args:
        input_ids: Tokens of all candidates, ``(N, L)``.
        attention_mask: Which of them count, ``(N, L)``.
        negative_image: Number of the image drawn for each text, ``(N,)``, -1 for none.
        negative_text: Number of the text drawn for each image, ``(N,)``, -1 for none.
        rows: Candidates that are this rank's own, ``(B,)``.
    """
    image = torch.cat([rows, negative_image[rows], rows])
    text = torch.cat([rows, rows, negative_text[rows]])
    labels = torch.zeros_like(image)
    labels[: len(rows)] = 1
    labels[(image < 0) | (text < 0)] = NO_NEGATIVE
    text = text.clamp(min=0)  # any pair will do where none is meant: its label leaves it out
    return MatchingPairs(image.clamp(min=0), input_ids[text], attention_mask[text], labels)


def matching_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the matching head, mean of all pairs.

    A pair without a negative counts as 0 and stays in the mean, so that means of ranks average to the mean over ranks.

    Args:
        logits: ``(P, 2)``: no match, match.
        labels: As of :class:`MatchingPairs`, ``(P,)``.
    """
    return F.cross_entropy(logits.float(), labels, ignore_index=NO_NEGATIVE, reduction="sum") / len(labels)


def match(model: Any, states: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:  # noqa: ANN401 (BLIP)
    """Matching logits of pairs, one image state each, as BLIP computes them, ``(P, 2)`` fp32.

    Args:
        model: ``BlipForImageTextRetrieval``, dense, masked or cut.
        states: Image states, ``(P, S, E)``.
        input_ids: Tokens, ``(P, L)``.
        attention_mask: Which of them count, ``(P, L)``.
    """
    output = model.text_encoder(input_ids=input_ids, attention_mask=attention_mask, encoder_hidden_states=states)
    return model.itm_head(output.last_hidden_state[:, 0]).float()


def match_groups(model: Any, states: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:  # noqa: ANN401 (BLIP)
    """As :func:`match`, for several texts per image, with less work, ``(images, texts, 2)`` fp32.

    Keys and values of the image states, the larger part of the cross-attention, are computed once per image and layer:
    tokens of different texts do not meet there, so the texts of an image line up as one long text. Of the last layer
    only the first token is computed beyond its self-attention. The layers run one by one, past ``torch.compile``.

    Args:
        model: ``BlipForImageTextRetrieval``, dense, masked or cut, in evaluation mode.
        states: Image states, ``(images, S, E)``.
        input_ids: Tokens, ``(images, texts, L)``.
        attention_mask: Which of them count, ``(images, texts, L)``.
    """
    images, texts, _ = input_ids.shape
    hidden = model.text_encoder.embeddings(input_ids=input_ids.flatten(0, 1))  # (images * texts, L, H)
    hole = torch.finfo(hidden.dtype).min
    mask = hidden.new_zeros(attention_mask.shape).masked_fill(attention_mask == 0, hole)
    mask = mask.flatten(0, 1)[:, None, None]  # (images * texts, 1, 1, L)
    layers = model.text_encoder.encoder.layer
    for layer in layers:
        hidden = layer.attention(hidden, attention_mask=mask)[0]
        if layer is layers[-1]:
            hidden = hidden[:, :1]
        lined_up = hidden.reshape(images, -1, hidden.shape[-1])  # (images, texts * L, H)
        crossed = layer.crossattention(lined_up, encoder_hidden_states=states)[0]
        hidden = layer.feed_forward_chunk(crossed.reshape(hidden.shape))
    return model.itm_head(hidden[:, 0]).view(images, texts, 2).float()
