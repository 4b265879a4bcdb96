"""Time and peak memory of inspecting, planning, cutting and saving a CLIP ViT-L/14 (428 M parameters) on the CPU.

    python tools/bench_cut.py --removed 0.5

Runs in a process of its own. Building the model counts in no time. The peak is the largest resident size from the built
model on, less what the process held before it was built, over the bytes of the dense weights.

Targets: below 30 seconds in all, below 2.2 times the weights.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from rich.console import Console
from rich.table import Table

SECONDS_TARGET, MEMORY_TARGET = 30.0, 2.2
VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
}
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}


def held() -> int:
    """Resident bytes of this process; its peak so far where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else peak()


def peak() -> int:
    """Largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def cut(pipe: Connection, removed: float, directory: str) -> None:
    """Do all of it and send the facts, the seconds by stage and the bytes above the start after each."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    from upop.cost import CostModel, measure
    from upop.export import save
    from upop.families import example_inputs, find_sites
    from upop.search import Budget, create, priorities, select
    from upop.structure import Plan
    from upop.surgery import shrink_

    find_sites(CLIPModel(CLIPConfig(text_config={"num_hidden_layers": 1}, vision_config={"num_hidden_layers": 1})))
    before = held()
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=768)).eval()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    stages: dict[str, tuple[float, int]] = {"build (not counted)": (0.0, peak() - before)}

    def done(stage: str, start: float) -> float:
        stages[stage] = (time.perf_counter() - start, peak() - before)
        return time.perf_counter()

    clock = time.perf_counter()
    sites = find_sites(model)
    cost = CostModel(sites, measure(model, sites, example_inputs(model)))
    clock = done("inspect", clock)
    budget = Budget(removed, allocation="uniform")
    ranked = priorities(create("random", sites).scores(), sites, budget.allocation)
    plan = Plan.of(select(ranked, sites, cost, budget, 1.0), sites)
    clock = done("plan", clock)
    shrink_(model, sites, plan)
    clock = done("cut", clock)
    save(model, None, Path(directory) / "compressed", plan, plan.kinds())
    done("save", clock)
    params = sum(parameter.numel() for parameter in model.parameters())
    pipe.send((weights, params, cost.whole("params"), stages))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--removed", type=float, default=0.5, help="fraction of the prunable parameters to remove")
    parser.add_argument("--directory", help="where to save to, for a moment (default: the system's temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=cut, args=(theirs, options.removed, directory))
        process.start()
        theirs.close()
        weights, params, whole, stages = ours.recv()
        process.join()
    table = Table(title=f"CLIP ViT-L/14, {whole / 1e6:.1f} M -> {params / 1e6:.1f} M parameters")
    for heading in ("stage", "seconds", "peak / weights"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for stage, (seconds, size) in stages.items():
        table.add_row(stage, f"{seconds:.2f}" if seconds else "", f"{size / weights:.2f} x")
    total, highest = sum(seconds for seconds, _ in stages.values()), max(size for _, size in stages.values())
    table.add_section()
    table.add_row("all", f"{total:.2f} (< {SECONDS_TARGET:.0f})", f"{highest / weights:.2f} x (< {MEMORY_TARGET} x)")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
