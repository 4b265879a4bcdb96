"""Does a latency budget hold what it promises, and is an aligned plan faster than one that is not?

    python tools/bench_latency.py --removed 0.4 --seconds 120
    python tools/bench_latency.py --model runs/NAME/finetune/model --device cuda --dtype bf16

A table of times is measured, as a search of ``latency`` does, and three plans are cut: ``latency`` removes the fraction
of the prunable latency, ``free`` and ``aligned`` the same fraction of the prunable parameters, ``aligned`` by
``multiple_of: auto``. Units go at random, ranked in one list, as a search does. Then the dense model and the three are
timed turn by turn in one process and held against the table. Without ``--model``, a CLIP ViT-B/32 with random weights.

Targets: of the dense model's time, a cut one takes what was predicted, within 5 %; ``aligned`` is as fast as ``free``.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import CLIPConfig, CLIPModel

from upop.cost import CostModel, LatencySettings, measure
from upop.export import load
from upop.families import example_inputs, find_sites
from upop.runs.latency import setting
from upop.runs.measuring import measure_latency, time_models
from upop.runs.timing import DTYPES
from upop.search import Budget, align, create, price, priorities, select_aligned
from upop.structure import Plan, Site
from upop.surgery import shrink_

WITHIN = 0.05


def random_clip(layers: int) -> nn.Module:
    """A CLIP ViT-B/32 with random weights, or a shallow one to try this tool on."""
    depth = {"num_hidden_layers": layers}
    return CLIPModel(CLIPConfig(text_config=depth, vision_config=depth)).eval()


def random_plan(sites: Sequence[Site], cost: CostModel, budget: Budget) -> tuple[Plan, str]:
    """The plan that a search with the ``random`` policy ends with, and what its alignment cost."""
    ranked = priorities(create("random", sites).scores(), sites)
    keep, used = select_aligned(ranked, sites, cost, budget, 1.0)
    found = price(ranked, keep, sites, cost, used)
    return Plan.of(keep, sites), found.line() if found else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="dense model directory, hub name or timm/NAME (default: random CLIP ViT-B/32)")
    parser.add_argument("--layers", type=int, default=12, help="layers of either tower of the random CLIP")
    parser.add_argument("--removed", type=float, default=0.4, help="fraction to remove of what can go")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="time for the table, about; half of it again after"
    )
    options = parser.parse_args()

    torch.manual_seed(0)
    device = torch.device(options.device)
    dense = load(options.model)[0] if options.model else random_clip(options.layers)
    sites, inputs = find_sites(dense), example_inputs(dense)
    settings = LatencySettings(options.batch_size, options.dtype, options.device, options.seconds)
    facts = setting(dense, sites, inputs, settings, device, {})
    table = measure_latency(dense, sites, inputs, settings, device, facts)
    cost = CostModel(sites, measure(dense, sites, inputs), table)

    of_params = Budget(options.removed)
    budgets = {
        "latency": Budget(options.removed, "latency"),
        "free": of_params,
        "aligned": align(of_params, sites, cost, device.type),
    }
    plans = {name: random_plan(sites, cost, budget) for name, budget in budgets.items()}
    models = {"dense": dense}
    for name, (plan, _) in plans.items():
        models[name] = copy.deepcopy(dense)
        shrink_(models[name], sites, plan)
    seconds = time_models(models, inputs, settings, device)

    title = [
        options.model or f"CLIP ViT-B/32, {options.layers} layers",
        f"{options.removed:.0%} removed of what can go",
        f"batch {options.batch_size}, {options.dtype}, {facts['device']}",
        *([f"{facts['threads']} threads"] if facts["threads"] else []),
    ]
    shown = Table(title=", ".join(title))
    for heading in (
        "model",
        "parameters, M",
        "predicted, ms",
        "measured, ms",
        "removed",
        "measured",
        "time left, off by",
    ):
        shown.add_column(heading, justify="left" if heading == "model" else "right")
    whole = cost.whole("latency")
    for name, taken in seconds.items():
        kept = plans[name][0].kept() if name in plans else {}
        left = cost.remaining(kept, "latency")
        expected, found = left / whole, taken / seconds["dense"]
        cells = [f"{1 - expected:.1%}", f"{1 - found:.1%}", f"{found / expected - 1:+.1%} (within {WITHIN:.0%})"]
        params = f"{cost.remaining(kept, 'params') / 1e6:.2f}"
        shown.add_row(name, params, f"{left / 1e6:,.2f}", f"{1000 * taken:,.2f}", *(cells if kept else []))
    out = Console(width=120)
    out.print(shown)
    out.print(f"parts' times were scaled by {table.scale:.3f}; {plans['aligned'][1] or 'nothing was aligned'}")
    out.print(f"aligned / free: {seconds['aligned'] / seconds['free']:.3f} (<= 1) at the same parameters")


if __name__ == "__main__":
    main()
