"""Attentions that take the place of Hugging Face's BLIP's: one that can be cut, one that minds its mask.

Hugging Face's ``BlipAttention`` derives the head size from the width of its input and gives the heads' outputs the
width of the whole model, so it breaks as soon as a head is gone. Ours goes by the ``num_heads`` and ``head_dim`` that
it stores and keeps the stored ``scale``. Parameters and their names are the same, so either class loads what the other
has saved; the products run in torch's fused kernel.

Hugging Face's cross-attention (transformers 5.17 to 5.23) loses the mask over the states that it looks at: the answer
decoder then attends to the padding of a question, and an answer depends on the other questions of its batch. Ours
passes the mask on, as BLIP's authors do.

Shapes: ``B`` images, ``N`` tokens, ``D`` width of the model, ``H`` heads, ``P`` head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.blip.modeling_blip import BlipAttention
from transformers.models.blip.modeling_blip_text import BlipTextAttention, BlipTextLayer


class BlipVisionAttention(BlipAttention):
    """Self-attention of BLIP's vision tower that goes by the sizes that it stores, so that it can be cut.

    It has the parameters, sizes and configuration of its base class, which is what transformers looks for when it
    records attentions.
    """

    num_heads: int
    head_dim: int
    scale: float

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:  # noqa: ANN401 (as HF)
        """Attend.

        Args:
            hidden_states: Tokens, ``(B, N, D)``.
            kwargs: ``output_attentions`` counts, here or in the configuration; the rest is ignored, as in the base
                class.

        Returns:
            Tokens ``(B, N, D)``, and the attention weights ``(B, H, N, N)`` if they were asked for, otherwise ``None``
            (the base class always returns them; the fused kernel does not make them).
        """
        fused = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, self.head_dim))  # (B, N, 3, H, P)
        queries, keys, values = fused.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, N, P) each
        weights = None
        if kwargs.get("output_attentions", getattr(self.config, "output_attentions", False)):
            weights = self.dropout((queries @ keys.transpose(-1, -2) * self.scale).softmax(-1))
            mixed = weights @ values
        else:
            dropped = self.dropout.p if self.training else 0.0
            mixed = F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropped, scale=self.scale)
        output: Tensor = self.projection(mixed.transpose(1, 2).flatten(2))  # (B, N, H * P) to (B, N, D)
        return output, weights


class BlipCrossAttention(BlipTextAttention):
    """Attention of a text layer over the states of another stream that does not look at their padding."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        past_key_values: Any = None,  # noqa: ANN401 (transformers' own)
        **kwargs: Any,  # noqa: ANN401 (as HF)
    ) -> tuple[Tensor, Tensor]:
        """Attend.

        Args:
            hidden_states: Tokens of the text, ``(B, L, D)``.
            attention_mask: What is added to the scores, 0 or the smallest number, ``(B, 1, 1, N)``.
            encoder_hidden_states: States to look at, ``(B, N, E)``.
            past_key_values: Keys and values of the tokens before, while generating.
            kwargs: Ignored, as in the base class.

        Returns:
            Tokens ``(B, L, D)`` and the attention weights ``(B, H, L, N)``.
        """
        mixed, weights = self.self(
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=attention_mask,
            past_key_values=past_key_values,
        )
        return self.output(mixed, hidden_states), weights


@torch.no_grad()
def swap_attention_(model: nn.Module) -> None:
    """Put these attentions in the place of Hugging Face's wherever ``model`` has them; twice is like once.

    Parameters, hooks and modes stay: only the class of the modules changes, as with torch's parametrisations.
    """
    for module in model.modules():
        if type(module) is BlipAttention:
            module.__class__ = BlipVisionAttention
        if isinstance(module, BlipTextLayer) and type(getattr(module, "crossattention", None)) is BlipTextAttention:
            module.crossattention.__class__ = BlipCrossAttention
