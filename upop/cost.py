"""Parameters and FLOPs of a model under a plan, in closed form: a budget needs no trial cutting.

What cannot be cut is measured once on the dense model (torch's FlopCounterMode on the meta device); what can be cut
follows from the sites and the number of tokens that pass through each layer. Biases, softmax and norms cost no FLOPs
here, as in FlopCounterMode: one multiply-add counts as two.

Cost is what a user deploys: momentum copies, queues, teachers and masks never count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from upop.messages import closest
from upop.structure import CURRENCIES, Attention, Currency, Cut, Kind, Layer, Modality, Side, Site


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


@dataclass(frozen=True)
class Share:
    """What the sites of one modality and kind hold and what a plan takes from them.

    Attributes:
        modality: Tower.
        kind: ``head``, ``head_dim``, ``neuron``, or ``head x head_dim`` where a block has both.
        sites: Number of sites.
        units: Units of the dense sites.
        units_kept: Units that the plan keeps.
        params: Prunable parameters of the dense sites.
        params_removed: Parameters that the plan removes.
        flops: Prunable FLOPs of the dense sites, per sample.
        flops_removed: FLOPs that the plan removes, per sample.
    """

    modality: Modality
    kind: str
    sites: int
    units: int
    units_kept: int
    params: int
    params_removed: int
    flops: int
    flops_removed: int


class CostModel:
    """Cost of any plan for one model.

    Args:
        sites: All sites that a plan may name.
        measured: What :func:`measure` found on the dense model.

    Raises:
        ValueError: If two sites see one side of a layer in different shapes, or a stream has no token count.
    """

    def __init__(self, sites: Sequence[Site], measured: Measured) -> None:
        self.sites = tuple(sites)
        self.measured = measured
        self._cuts: dict[tuple[str, Side], list[tuple[str, Cut]]] = {}
        self._layers: dict[str, tuple[Layer, Modality]] = {}
        self._attention: dict[str, tuple[Attention, Modality, dict[Kind, str]]] = {}
        for site in sites:
            for cut in site.cuts:
                shared = self._cuts.setdefault((cut.layer.name, cut.side), [])
                if shared and shared[0][1].view != cut.view:
                    raise ValueError(f"sites see the {cut.side} side of {cut.layer.name} in different shapes")
                if cut.layer.tokens not in measured.tokens:
                    raise ValueError(f"no token count for stream {cut.layer.tokens!r} of {cut.layer.name}")
                shared.append((site.name, cut))
                self._layers[cut.layer.name] = (cut.layer, site.modality)
            if site.attention:
                entry = self._attention.setdefault(site.attention.name, (site.attention, site.modality, {}))
                entry[2][site.kind] = site.name
        self._nothing = {site.name: 0 for site in sites}

    def whole(self, currency: Currency) -> int:
        """Cost of the whole dense model."""
        _known(currency)
        return self.measured.params if currency == "params" else self.measured.flops

    def prunable(self, currency: Currency, modality: str | None = None) -> int:
        """Cost of everything that units own, of one modality or of all."""
        return self.removed(self._nothing, currency, modality)

    def removed(self, kept: Mapping[str, int], currency: Currency, modality: str | None = None) -> int:
        """Cost that is gone when ``kept`` units stay per site.

        Args:
            kept: Units kept by site name; a site that is not named stays whole.
            currency: ``params`` or ``flops`` (per sample).
            modality: Count this tower only.
        """
        _known(currency)
        return self._cost({}, currency, modality) - self._cost(kept, currency, modality)

    def remaining(self, kept: Mapping[str, int], currency: Currency) -> int:
        """Cost of the whole model after the cut."""
        return self.whole(currency) - self.removed(kept, currency)

    def shares(self, kept: Mapping[str, int]) -> list[Share]:
        """What is removed where: one row per modality and kind, in the order of the sites.

        Heads and head-dims of one block multiply, so a block with both is one row.
        """
        blocks: dict[str, list[Site]] = {}
        for site in self.sites:
            blocks.setdefault(site.block, []).append(site)
        groups: dict[tuple[Modality, str], list[Site]] = {}
        for block in blocks.values():
            groups.setdefault((block[0].modality, " x ".join(site.kind for site in block)), []).extend(block)
        return [self._share(modality, kind, sites, kept) for (modality, kind), sites in groups.items()]

    def _share(self, modality: Modality, kind: str, sites: Sequence[Site], kept: Mapping[str, int]) -> Share:
        part = CostModel(sites, self.measured)
        return Share(
            modality,
            kind,
            len(sites),
            sum(site.units for site in sites),
            sum(kept.get(site.name, site.units) for site in sites),
            part.prunable("params"),
            part.removed(kept, "params"),
            part.prunable("flops"),
            part.removed(kept, "flops"),
        )

    def _cost(self, kept: Mapping[str, int], currency: Currency, modality: str | None) -> int:
        """Cost of the layers (and attentions) that sites cut, whole rows and columns that nobody owns included."""
        total = 0
        for layer, tower in self._layers.values():
            if modality is None or tower == modality:
                rows, columns = self._features(layer, "out", kept), self._features(layer, "in", kept)
                if currency == "params":
                    total += rows * columns + (rows if layer.bias else 0)
                else:
                    total += 2 * self.measured.tokens[layer.tokens] * rows * columns
        if currency == "flops":
            total += sum(
                self._products(attention, names, kept)
                for attention, tower, names in self._attention.values()
                if modality is None or tower == modality
            )
        return total

    def _features(self, layer: Layer, side: Side, kept: Mapping[str, int]) -> int:
        cuts = self._cuts.get((layer.name, side))
        if not cuts:
            return layer.out_features if side == "out" else layer.in_features
        view = list(cuts[0][1].view)
        for name, cut in cuts:
            view[cut.dim] = kept.get(name, view[cut.dim])
        return math.prod(view)

    def _products(self, attention: Attention, names: Mapping[Kind, str], kept: Mapping[str, int]) -> int:
        """FLOPs of queries x keys and of weights x values."""
        heads = kept.get(names.get("head", ""), attention.heads)
        head_dim = kept.get(names.get("head_dim", ""), attention.head_dim)
        keys = self.measured.tokens[attention.keys] // self.measured.sequences.get(attention.keys, 1)
        return 4 * self.measured.tokens[attention.queries] * keys * heads * head_dim


def _known(currency: str, known: Iterable[str] = CURRENCIES) -> None:
    if currency not in known:
        raise ValueError(f"unknown currency {currency!r}; known: {sorted(known)}{closest(currency, known)}")
