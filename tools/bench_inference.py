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
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import CLIPConfig, CLIPModel

from upop.cost import CostModel, measure
from upop.export import load
from upop.families import example_inputs, find_sites
from upop.runs.timing import Speed, compare_speed
from upop.search import Budget, create, priorities, select
from upop.structure import Kind, Plan, Site
from upop.surgery import shrink_

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TARGET = 0.85


def multiples(text: str) -> tuple[str, int]:
    """``head_dim=8`` as a kind and a number."""
    kind, _, number = text.partition("=")
    return kind, int(number)


def random_plan(sites: Sequence[Site], cost: CostModel, budget: Budget) -> Plan:
    """The plan that a search with the ``random`` policy ends with."""
    ranked = priorities(create("random", sites).scores(), sites, budget.allocation)
    return Plan.of(select(ranked, sites, cost, budget, 1.0), sites)


def time_models(models: dict[str, nn.Module], dtype: torch.dtype, batch_size: int, seconds: float) -> dict[str, Speed]:
    """Speed by name; random images take the default dtype, so that has to be the models'."""
    inputs = example_inputs(models["dense"])
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return compare_speed(models, inputs, batch_size, seconds)
    finally:
        torch.set_default_dtype(before)


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
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0, help="time to spend on the timing, about")
    options = parser.parse_args()

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
    for model in models.values():
        model.to(options.device, DTYPES[options.dtype])
    speeds = time_models(models, DTYPES[options.dtype], options.batch_size, options.seconds)

    title = options.model or "CLIP ViT-B/32"
    table = Table(
        title=f"{title}, {options.removed:.0%} of the prunable parameters removed, batch {options.batch_size}, "
        f"{options.dtype}, {speeds['dense'].device}, {speeds['dense'].rounds} rounds"
    )
    for heading in ("model", "p50, ms", "p90, ms", "GFLOPs", "FLOPs ratio", "speed-up", "speed-up / FLOPs ratio"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for name, speed in speeds.items():
        flops = cost.remaining(plans[name].kept() if name in plans else {}, "flops")
        ratio = cost.whole("flops") / flops
        gain = speeds["dense"].latency_ms / speed.latency_ms
        row = (
            [f"{ratio:.2f} x", f"{gain:.2f} x", f"{gain / ratio:.2f} (>= {TARGET})"] if name in plans else ["", "", ""]
        )
        table.add_row(name, f"{speed.latency_ms:.1f}", f"{speed.latency_p90_ms:.1f}", f"{flops / 1e9:.2f}", *row)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
