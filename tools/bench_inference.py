"""Measured speed-up of cut models over the dense one, held against the ratio of their FLOPs.

    python tools/bench_inference.py --removed 0.5 --aligned head_dim=8 neuron=64 --seconds 60
    python tools/bench_inference.py --model runs/NAME/finetune/model --device cuda --dtype bf16

The dense model and three cuts of it are timed turn by turn in one process. The units go at random: ``uniform`` removes
the same share at every site, ``free`` ranks all units in one list and leaves odd sizes, as a search does, ``aligned``
is ``free`` with the units kept rounded to multiples. Without ``--model``, a CLIP ViT-B/32 with random weights.

Target: the speed-up is at least 0.85 of the ratio of the FLOPs.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel

from upop.cost import CostModel, measure
from upop.export import load
from upop.families import example_inputs, find_sites
from upop.runs.bench import compare, show
from upop.runs.bench_conditions import DTYPES, Conditions
from upop.search import Budget, create, priorities, select
from upop.structure import Kind, Plan, Site
from upop.surgery import shrink_

TARGET = 0.85


def multiples(text: str) -> tuple[str, int]:
    """``head_dim=8`` as a kind and a number."""
    kind, _, number = text.partition("=")
    return kind, int(number)


def random_plan(sites: Sequence[Site], cost: CostModel, budget: Budget) -> Plan:
    """The plan that a search with the ``random`` policy ends with."""
    ranked = priorities(create("random", sites).scores(), sites, budget.allocation)
    return Plan.of(select(ranked, sites, cost, budget, 1.0), sites)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="dense model directory, hub name or timm/NAME (default: random CLIP ViT-B/32)")
    parser.add_argument("--removed", type=float, default=0.5, help="fraction of the prunable parameters to remove")
    parser.add_argument(
        "--aligned",
        type=multiples,
        nargs="+",
        default=[("head_dim", 8), ("neuron", 64)],
        metavar="KIND=MULTIPLE",
        help="units kept per site in the aligned cut are multiples of this (default: head_dim=8 neuron=64)",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[32])
    parser.add_argument("--compile", action="store_true", help="time what torch.compile makes of the models")
    parser.add_argument("--seconds", type=float, default=60.0, help="time to spend on each batch size, about")
    options = parser.parse_args()
    conditions = Conditions(
        options.device, options.dtype, options.batch_size, compiled=options.compile, seconds=options.seconds
    )

    torch.manual_seed(0)
    dense = load(options.model)[0] if options.model else CLIPModel(CLIPConfig())
    sites = find_sites(dense)
    cost = CostModel(sites, measure(dense, sites, example_inputs(dense)))
    aligned: dict[Kind, Any] = dict(options.aligned)
    budgets = {
        "uniform": Budget(options.removed, allocation="uniform"),
        "free": Budget(options.removed),
        "aligned": Budget(options.removed, multiple_of=aligned, tolerance=0.02),
    }
    plans = {name: random_plan(sites, cost, budget) for name, budget in budgets.items()}
    models: dict[str, nn.Module] = {"dense": dense}
    for name, plan in plans.items():
        models[name] = copy.deepcopy(dense)
        shrink_(models[name], sites, plan)
    print(f"{options.model or 'CLIP ViT-B/32'}, {options.removed:.0%} of the prunable parameters removed")
    found = compare(models, conditions, "dense")
    show(found)
    least = min(share for timing in found.timings if (share := found.realised(timing)) is not None)
    print(f"least of the FLOPs ratio: {least:.2f} (target: at least {TARGET})")


if __name__ == "__main__":
    main()
