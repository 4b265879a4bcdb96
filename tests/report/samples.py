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


def so_far(*states, search=True, **changes):
    """What is known of the run of :func:`summary` before it is finished, with the metrics of some states."""
    told = summary(**changes)
    timed = ("latency_ms", "samples_per_s")
    told["states"] = {
        state: {key: value for key, value in told["states"][state].items() if key not in timed} for state in states
    }
    told |= {"upop": "", "speed": {}, "removed": []}
    if not search:
        told["sites"], told["search"]["history"] = [], []
    return told


def summary(removed=0.5, task="Retrieval", metrics=("i2t_r1", "mean"), layers=3, updates=4, seed=1, policy="unified"):
    """What summary.json holds of a made-up run with a vision, a text and a fusion tower."""
    parts = [
        ("vision_model.encoder.layers.{}.self_attn.head_dim", "head_dim", "vision", 32),
        ("vision_model.encoder.layers.{}.mlp.neuron", "neuron", "vision", 512),
        ("text_decoder.bert.encoder.layer.{}.attention.self.head_dim", "head_dim", "text", 32),
        ("text_decoder.bert.encoder.layer.{}.intermediate.neuron", "neuron", "text", 512),
        ("text_decoder.bert.encoder.layer.{}.crossattention.self.head_dim", "head_dim", "fusion", 32),
    ]
    sites = [
        {"name": name.format(depth), "kind": kind, "modality": modality, "depth": depth, "units": units}
        | {"units_kept": max(round(units * (1 - removed)) - depth, 1)}
        for name, kind, modality, units in parts
        for depth in range(layers)
    ]
    shares = [
        {
            "modality": modality,
            "kind": kind,
            "sites": layers,
            "units": layers * units,
            "units_kept": layers * units // 2,
        }
        | {"params": 1000 * units, "params_removed": 500 * units, "flops": 8000 * units, "flops_removed": 4000 * units}
        for _, kind, modality, units in parts
    ]
    dense = {"params": 2_581_530, "flops": 106_430_464}
    cut = {size: round(whole * (1 - 0.9 * removed)) for size, whole in dense.items()}
    fast, slow = {"latency_ms": 165.885, "samples_per_s": 192.9}, {"latency_ms": 277.367, "samples_per_s": 115.37}
    points = [{key: 20.0 * number - 5.125 * state for number, key in enumerate(metrics, 1)} for state in (0, 2, 1)]
    rows = [
        {
            "step": 4.0 * (update + 1),
            "loss": 3.0 - 0.25 * update,
            "units_returned": 10.0 * update,
            "steps_left_out": 0.0,
        }
        | {f"removed/{size}": removed * (update + 1) / updates for size in ("params", "flops")}
        | {f"removed/params/{tower}": removed * (update + 1) / updates for tower in ("vision", "text", "fusion")}
        | {"removed/params/vision/neuron": 0.125}
        for update in range(updates)
    ]
    facts = {"removed": removed, "of": "params", "policy": policy, "allocation": "unified", "steps": 4 * updates}
    timed = {"latency_p90_ms": 300.0, "throughput": 1.0, "batch_size": 32, "rounds": 3, "device": "cpu, 1 threads"}
    return {
        "format": 2,
        "upop": "0.1.0",
        "recipe": {"task": task, "data": "Shapes", "checkpoint": "models/shapes", "seed": seed},
        "states": {"dense": dense | slow | points[0], "cut": cut | points[1], "retrained": cut | fast | points[2]},
        "speed": {"dense": {"latency_ms": 277.367} | timed, "compressed": {"latency_ms": 165.885} | timed},
        "removed": shares,
        "sites": sites,
        "search": {"target": removed, "facts": facts | {"units": ["head_dim", "neuron"]}, "history": rows},
        "steps_left_out": 0,
        "seconds_last_attempt": {"finetune": None, "search": 16.0, "retrain": 11.5},
        "files": {"plan": "runs/x/plan.json"},
    }
