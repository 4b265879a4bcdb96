"""How memory and time of a search step grow with layers, width and parameters, on a ladder of random models.

    python tools/bench_scaling.py --markdown docs/scaling.md --plot docs/scaling.png

CLIP-like models with random weights. Those that fit into ``--memory`` take training steps on the CPU in fp32, dense and
masked in turn on the same weights (the masks come off and on), so that the ratio of the two does not depend on the
machine; then they are planned and cut. Each runs in a process of its own. For all of them, up to 1 B parameters, the
bytes of a step are counted: weights, gradients and AdamW's moments (4 + 4 + 8 per parameter), and what autograd keeps
for the backward pass (``scaling_counts.py``).
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from scaling_counts import ADAMW, GB, Count, count
from tables import Cells, show

VOCABULARY, TOKENS, SIDE, PATCH = 49408, 32, 224, 32
Group = Sequence[tuple["Rung", Count, "Timed | None"]]


@dataclass(frozen=True)
class Rung:
    """A CLIP-like model: layers of both towers, width of the vision tower and of the text tower."""

    layers: int
    vision: int
    text: int

    def __str__(self) -> str:
        return f"{self.layers} x {self.vision} / {self.text}"


LADDER = (
    Rung(4, 192, 128), Rung(6, 384, 256), Rung(12, 512, 384), Rung(12, 768, 512), Rung(16, 1024, 640),
    Rung(24, 1024, 768), Rung(32, 1280, 1024),
)  # fmt: skip


DEEPER = tuple(Rung(layers, 384, 256) for layers in (3, 6, 12))


WIDER = tuple(Rung(6, width, width // 64 * 48) for width in (256, 512, 768))


@dataclass(frozen=True)
class Timed:
    """Seconds of a dense and a masked step (median), of planning and cutting, and bytes above the start."""

    dense: float
    ratio: float
    plan: float
    cut: float
    dense_bytes: int
    masked_bytes: int


def clip(rung: Rung) -> Any:  # noqa: ANN401
    """A model of the ladder, random weights."""
    from transformers import CLIPConfig, CLIPModel

    def tower(width: int) -> dict[str, int]:
        heads = {"num_attention_heads": width // 64, "num_hidden_layers": rung.layers}
        return {"hidden_size": width, "intermediate_size": 4 * width, **heads}

    text = tower(rung.text) | {"vocab_size": VOCABULARY, "max_position_embeddings": TOKENS}
    vision = tower(rung.vision) | {"image_size": SIDE, "patch_size": PATCH}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=512))


def contrast(model: Any, size: int) -> Callable[[], Any]:  # noqa: ANN401
    """The loss of a step on random pairs."""
    import torch
    import torch.nn.functional as F

    from upop.families import image_features, text_features
    from upop.tasks.contrast import contrastive

    images, texts = torch.randn(size, 3, SIDE, SIDE), torch.randint(1, 49000, (size, TOKENS))

    def loss() -> torch.Tensor:
        found = [F.normalize(f(model, x), dim=-1) for f, x in ((image_features, images), (text_features, texts))]
        return contrastive(found[0], found[1], model.logit_scale.exp(), torch.arange(size))

    return loss


def held() -> int:
    """Resident bytes of this process; its peak so far where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else peak()


def peak() -> int:
    """Largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(pipe: Connection, rung: Rung, batch: int, rounds: int) -> None:
    """Step, plan and cut one model of the ladder, and send :class:`Timed`."""
    import torch

    from upop.cost import CostModel
    from upop.cost import measure as counted
    from upop.families import example_inputs, find_sites
    from upop.masks import Masks
    from upop.search import Budget, create, priorities, select
    from upop.structure import Plan
    from upop.surgery import shrink_

    small = clip(Rung(1, 64, 64))
    contrast(small, 2)().backward()  # libraries start their threads and buffers here
    before = held()
    torch.manual_seed(0)
    model = clip(rung).train()
    sites, loss = find_sites(model), contrast(model, batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step(masked: bool) -> float:
        masks = Masks(model, sites) if masked else None
        start = time.perf_counter()
        loss().backward()
        if masks:
            masks.gradients()
        optimizer.step()
        optimizer.zero_grad()
        seconds = time.perf_counter() - start
        if masks:
            masks.detach()
        return seconds

    for _ in range(2):
        step(masked=False)
    dense_bytes = peak() - before
    step(masked=True)
    pairs = [(step(masked=False), step(masked=True)) for _ in range(rounds)]
    masked_bytes, clock = peak() - before, [time.perf_counter()]
    cost = CostModel(sites, counted(model, sites, example_inputs(model)))
    budget = Budget(0.5, allocation="uniform")
    ranked = priorities(create("random", sites).scores(), sites, budget.allocation)
    plan = Plan.of(select(ranked, sites, cost, budget, 1.0), sites)
    clock.append(time.perf_counter())
    shrink_(model, sites, plan)
    clock.append(time.perf_counter())
    ratio = statistics.median(masked / dense for dense, masked in pairs)
    plain = statistics.median(dense for dense, _ in pairs)
    pipe.send(Timed(plain, ratio, clock[1] - clock[0], clock[2] - clock[1], dense_bytes, masked_bytes))


def measured(rung: Rung, batch: int, rounds: int) -> Timed:
    """As :func:`measure`, in a fresh process."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=measure, args=(theirs, rung, batch, rounds))
    process.start()
    theirs.close()
    found: Timed = ours.recv()
    process.join()
    return found


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of a line through the logarithms: ``y`` grows as ``x`` to this power."""
    import numpy as np

    return float(np.polyfit(np.log(x), np.log(y), 1)[0]) if len(x) > 1 else float("nan")


LADDER_HEADINGS = (
    "layers x widths", "parameters", "mask numbers", "GFLOPs of a step", "kept for backward", "step, counted",
    "step, measured", "of it by masks", "dense step", "masked / dense", "plan", "cut",
)  # fmt: skip


GROWTH_HEADINGS = (
    "grows with",
    "models",
    "FLOPs",
    "kept for backward",
    "dense step",
    "masked step",
    "peak",
    "plan",
    "cut",
)


def step_of(rung: Rung, batch: int) -> tuple[Any, Callable[[], Any]]:
    """A model of the ladder and its step."""
    model = clip(rung)
    return model, contrast(model, batch)


def ladder(options: argparse.Namespace) -> list[tuple[str, list[Cells]]]:
    """Measure and count the ladder; tables by name."""
    known: dict[Rung, tuple[Count, Timed | None]] = {}
    rows, fits, first = [], [], []
    for name, rungs in {"parameters": LADDER, "layers, width 384": DEEPER, "width, 6 layers": WIDER}.items():
        group = []
        for rung in rungs[: options.rungs]:
            if rung not in known:
                found = count(partial(step_of, rung, options.batch), bf16=False)
                fits_in = ADAMW * found.params + found.kept < options.memory * 2**30
                known[rung] = found, measured(rung, options.batch, options.rounds) if fits_in else None
                rows.append(ladder_row(rung, *known[rung]))
            group.append((rung, *known[rung]))
        first = first or group
        fits.append(fitted(name, group))
    if options.plot:
        plot(options.plot, first)
    return [("ladder", [list(LADDER_HEADINGS), *rows]), ("growth", [list(GROWTH_HEADINGS), *fits])]


def ladder_row(rung: Rung, found: Count, timed: Timed | None) -> Cells:
    needed = ADAMW * found.params + found.kept
    facts = [
        str(rung), f"{found.params / 1e6:.0f} M", f"{found.units:,}", f"{found.flops / 1e9:.0f}",
        f"{found.kept / GB:.2f} GB", f"{needed / GB:.2f} GB",
    ]  # fmt: skip
    if timed is None:
        return facts + ["counted only"] + [""] * 5
    return [
        *facts, f"{timed.masked_bytes / GB:.2f} GB", f"{(timed.masked_bytes - timed.dense_bytes) / GB:.2f} GB",
        f"{timed.dense:.2f} s", f"{timed.ratio:.3f}", f"{timed.plan:.2f} s", f"{timed.cut:.2f} s",
    ]  # fmt: skip


def fitted(name: str, group: Group) -> Cells:
    """Powers that everything grows by, over what the group varies."""

    def size(rung: Rung, found: Count) -> float:
        return float({"l": rung.layers, "w": rung.vision, "p": found.params}[name[0]])

    counted = [(size(rung, found), found) for rung, found, _ in group]
    ran = [(size(rung, found), timed) for rung, found, timed in group if timed]
    xs, ts = [x for x, _ in counted], [x for x, _ in ran]
    powers = [exponent(xs, [getattr(found, field) for _, found in counted]) for field in ("flops", "kept")]
    ways: list[Callable[[Timed], float]] = [
        lambda t: t.dense, lambda t: t.dense * t.ratio, lambda t: t.masked_bytes, lambda t: t.plan, lambda t: t.cut,
    ]  # fmt: skip
    powers += [exponent(ts, [way(timed) for _, timed in ran]) for way in ways]
    return [name, f"{len(counted)} counted, {len(ran)} measured", *(f"^{power:.2f}" for power in powers)]


def plot(path: Path, group: Group) -> None:
    """Write the picture: bytes and seconds over parameters."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    memory, seconds = figure.subplots(1, 2)
    params = [found.params / 1e6 for _, found, _ in group]
    ran = [(found.params / 1e6, timed) for _, found, timed in group if timed]
    x = [size for size, _ in ran]
    memory.plot(params, [(ADAMW * c.params + c.kept) / GB for _, c, _ in group], "k--", label="counted")
    memory.plot(x, [timed.masked_bytes / GB for _, timed in ran], "o", color="#0072B2", label="measured")
    seconds.plot(x, [timed.dense for _, timed in ran], "o-", color="#5F5F5F", label="dense step")
    seconds.plot(x, [timed.dense * timed.ratio for _, timed in ran], "o-", color="#0072B2", label="masked step")
    seconds.plot(x, [timed.plan + timed.cut for _, timed in ran], "s-", color="#D55E00", label="plan and cut, once")
    for axes, title in ((memory, "GB of a masked step"), (seconds, "seconds on the CPU")):
        axes.set(xscale="log", yscale="log", xlabel="million parameters", title=title)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="pairs of a step")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of steps that are timed")
    parser.add_argument("--rungs", type=int, help="models of each group, the first ones (default: all)")
    parser.add_argument("--memory", type=float, default=5.0, help="GiB that a measured step may need by the count")
    parser.add_argument("--plot", type=Path, help="also write the picture, as PNG")
    parser.add_argument("--markdown", type=Path, help="also put the tables between the marks of this file")
    options = parser.parse_args()
    show(ladder(options), options.markdown, "bench_scaling")


if __name__ == "__main__":
    main()
