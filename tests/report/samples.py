"""Sites and plans of made-up towers."""

import math

import torch

from upop.structure import Cut, Layer, Plan, Site


def site(name, kind, modality, depth, units):
    layer = Layer(name.rpartition(".")[0] + ".layer", in_features=units, out_features=units, bias=True, tokens=modality)
    return Site(name, kind, modality, depth, cuts=(Cut(layer, "out", view=(units,), dim=0),))


def tower(modality, layers, kinds):
    """Sites of ``layers`` layers; ``kinds`` names the units of each kind."""
    block = {"head": "attn", "head_dim": "attn", "neuron": "mlp"}
    return [
        site(f"{modality}.layers.{depth}.{block[kind]}.{kind}", kind, modality, depth, units)
        for depth in range(layers)
        for kind, units in kinds.items()
    ]


def plan(sites, seed=0):
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for one in sites:
        share = float(torch.rand(1, generator=generator)) * (0.4 + 0.05 * one.depth)
        keep[one.name] = range(max(1, min(one.units, round(one.units * (0.2 + share)))))
    return Plan.of(keep, sites)


def search_rows(steps=600, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for step in range(steps):
        row = {"step": step, "loss": 2.0 + math.exp(-step / 50) + 0.3 * float(torch.randn(1, generator=generator))}
        if step % 20 == 0:
            removed = 0.5 * math.sin(math.pi * (step + 20) / (2 * steps))
            row |= {"removed/params": removed, "removed/params/vision": 1.2 * removed}
            row |= {"removed/params/text": 0.7 * removed, "removed/flops": 1.1 * removed}
        rows.append(row)
    return rows
