"""Stochastic depth: in training, a sample skips a residual branch now and then, a later one more often.

Source: Huang et al., ECCV 2016, https://arxiv.org/abs/1603.09382, as timm's ``drop_path`` does it, with which BLIP's
authors train the vision tower on VQA (rate 0.1). Hugging Face's BLIP has none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle
from torchvision.ops import stochastic_depth


def add_stochastic_depth(branches: Sequence[Sequence[nn.Module]], rate: float) -> list[RemovableHandle]:
    """Let samples skip the branches of a tower in training; modules, weights and evaluation stay as they are.

    Args:
        branches: For each layer, the modules whose outputs are added to the residual stream; an output is a tensor
            ``(B, ...)`` or a tuple that begins with one.
        rate: Probability at which a sample skips a branch of the last layer; it grows linearly from 0 at the first.

    Returns:
        Handles that take it off again.

    Raises:
        ValueError: If the rate is not in [0, 1).
    """
    check_rate(rate)
    handles = []
    for layer, modules in enumerate(branches):
        here = rate * layer / max(len(branches) - 1, 1)
        if here > 0:
            handles += [module.register_forward_hook(_skip(here)) for module in modules]
    return handles


def check_rate(rate: float) -> None:
    """Refuse what is no rate of stochastic depth.

    Raises:
        ValueError: If it is not in [0, 1).
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"drop_path is {rate!r}; it is the probability to skip the last vision layer, in [0, 1)")


def _skip(rate: float) -> Callable[[nn.Module, Any, Any], Any]:
    """A hook by which samples of a batch are 0 at this rate, the others scaled up by as much."""

    def hook(module: nn.Module, _: Any, output: Any) -> Any:  # noqa: ANN401 (torch's own signature)
        if not module.training:
            return output
        if isinstance(output, tuple):
            return (stochastic_depth(output[0], rate, "row"), *output[1:])
        return stochastic_depth(output, rate, "row")

    return hook
