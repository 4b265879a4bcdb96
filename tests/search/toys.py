"""Sites built in code, and two costs simple enough to be done by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import torch

from upop.structure import Cut, Layer, Site


def site(block, kind, units, modality="vision", depth=0):
    name = f"{block}.{kind}"
    layer = Layer(name, in_features=4, out_features=units, bias=True, tokens=modality)
    return Site(name, kind, modality, depth, (Cut(layer, "out", view=(units,), dim=0),))


def tower(modality, blocks, head_dims=0, neurons=0, heads=0):
    sites = []
    for depth in range(blocks):
        attention, mlp = f"{modality}.layers.{depth}.attention", f"{modality}.layers.{depth}.mlp"
        sites += [site(attention, "head", heads, modality, depth)] if heads else []
        sites += [site(attention, "head_dim", head_dims, modality, depth)] if head_dims else []
        sites += [site(mlp, "neuron", neurons, modality, depth)] if neurons else []
    return sites


@dataclass
class ToyCost:
    """Sites of one block multiply (heads times head-dims), blocks add; ``price`` is per block, flops are 3 params."""

    sites: list
    price: dict = field(default_factory=dict)
    rest: int = 1000
    calls: int = 0

    def _cost(self, kept, modality):
        blocks = {}
        for one in self.sites:
            if modality in (None, one.modality):
                blocks.setdefault(one.block, []).append(kept.get(one.name, one.units))
        return sum(self.price.get(block, 1) * prod(counts) for block, counts in blocks.items())

    def removed(self, kept, currency, modality=None):
        self.calls += 1
        return (self._cost({}, modality) - self._cost(kept, modality)) * (3 if currency == "flops" else 1)

    def prunable(self, currency, modality=None):
        return self._cost({}, modality) * (3 if currency == "flops" else 1)

    def whole(self, currency):
        return self.prunable(currency) + self.rest


def noise(sites, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {one.name: torch.randn(one.units, generator=generator) for one in sites}
