"""Parameters, FLOPs and tokens of a dense model, found in one pass on the meta device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from upop.structure import Site


@dataclass(frozen=True)
class Measured:
    """What a forward pass of one sample showed.

    Attributes:
        params: Parameters of the model, tied ones once.
        flops: FLOPs of one sample.
        tokens: Tokens of one sample by stream, those of all its sequences together.
        sequences: Sequences that these tokens come in, by stream; 1 where it is not named. Two images in a sample are
            two sequences: tokens of one do not attend to the other's.
    """

    params: int
    flops: int
    tokens: Mapping[str, int]
    sequences: Mapping[str, int] = field(default_factory=dict)


class _Unpadded(TorchDispatchMode):
    """Answers yes where a model asks whether a mask is all ones, which a mask on the meta device cannot know.

    BLIP asks this of the mask over its images. Samples have no padding, so the answer is right.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        if func is torch.ops.aten.all.default and args[0].device.type == "meta":
            return torch.tensor(True)
        return func(*args, **(kwargs or {}))


def measure(model: nn.Module, sites: Sequence[Site], inputs: Mapping[str, Tensor]) -> Measured:
    """Count the parameters and FLOPs of ``model`` and the tokens of each stream, on the meta device.

    Nothing is computed and no weight is copied. Masks may be attached; they do not count.

    Args:
        model: Dense or cut model.
        sites: Its sites; may be empty, then no tokens are counted.
        inputs: One sample, keyword arguments of the model's forward pass, of any device.
    """
    tokens: dict[str, int] = {}
    sequences: dict[str, int] = {}

    def note(stream: str) -> object:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            count, *shape = arguments[0].shape
            sequences[stream] = sequences.get(stream, 0) + count
            tokens[stream] = tokens.get(stream, 0) + count * math.prod(shape[:-1])

        return hook

    streams = {cut.layer.tokens: cut.layer.name for site in sites for cut in site.cuts}
    hooks = [model.get_submodule(name).register_forward_pre_hook(note(stream)) for stream, name in streams.items()]  # type: ignore[arg-type]
    named = [*model.named_parameters(), *model.named_buffers()]
    meta = {name: tensor.detach().to("meta") for name, tensor in named}
    training = [module for module in model.modules() if module.training]  # a frozen tower may be in evaluation mode
    model.eval()
    try:
        with FlopCounterMode(display=False) as counter, _Unpadded(), torch.no_grad():
            functional_call(model, meta, kwargs={name: value.to("meta") for name, value in inputs.items()})
    finally:
        for module in training:
            module.training = True
        for hook in hooks:
            hook.remove()
    params = sum(parameter.numel() for parameter in model.parameters())
    several = {stream: count for stream, count in sequences.items() if count != 1}
    return Measured(params, counter.get_total_flops(), tokens, several)
