"""Time of a search step over that of a dense training step, and of a mask update over the steps between two updates.

    python tools/bench_search.py --device cpu --batch-size 32 --rounds 7

A CLIP ViT-B/32 with random weights, dense and masked, takes training steps in turn (dense, masked, dense, masked, ...)
in one process, so that a drift of the machine hits both alike: the ratio is the median over the pairs. A step is the
forward pass of both towers, the contrastive loss, the backward pass and AdamW; a search step also collects the mask
gradients, by the callback's own hook. An update ranks all units, selects what goes and writes the masks.

Targets: a search step takes at most 1.05 dense steps, an update at most 1 % of the 50 steps between two updates.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import CLIPConfig, CLIPModel

from upop.callbacks import ProgressiveSearch
from upop.cost import CostModel, measure
from upop.families import example_inputs, find_sites, image_features, text_features
from upop.tasks.contrast import contrastive

INTERVAL = 50  # steps between two updates
STEPS = 20 * INTERVAL  # of the whole search
STEP_TARGET, UPDATE_TARGET = 1.05, 0.01


def make_batch(model: CLIPModel, size: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Random images ``(B, 3, H, W)`` and texts ``(B, L)`` of full length."""
    config, generator = model.config, torch.Generator().manual_seed(0)
    side, length = config.vision_config.image_size, config.text_config.max_position_embeddings
    images = torch.randn(size, 3, side, side, generator=generator)
    texts = torch.randint(1, config.text_config.vocab_size - 2, (size, length), generator=generator)
    texts[:, -1] = config.text_config.eos_token_id
    return {"images": images.to(device), "texts": texts.to(device)}


def step(
    model: Any,  # noqa: ANN401 (a dual encoder with a logit scale)
    optimizer: torch.optim.Optimizer,
    batch: dict[str, torch.Tensor],
    precision: str,
    collect: Callable[[], None],
) -> None:
    """One training step; ``collect`` runs between the backward pass and the optimizer."""
    device = batch["images"].device
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        images = F.normalize(image_features(model, batch["images"]), dim=-1)
        texts = F.normalize(text_features(model, batch["texts"]), dim=-1)
        loss = contrastive(images, texts, model.logit_scale.exp(), torch.arange(len(images), device=device))
    loss.backward()
    collect()
    optimizer.step()
    optimizer.zero_grad()


def timed(run: Callable[[], None], device: torch.device) -> float:
    """Seconds that ``run`` takes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def masked(model: nn.Module) -> tuple[Callable[[], None], Callable[[], None]]:
    """Mask ``model``; returns what collects the mask gradients and what updates the masks."""
    search = ProgressiveSearch(removed=0.5, interval=INTERVAL)
    sites = find_sites(model, search.units)
    search.bind(sites, CostModel(sites, measure(model, sites, example_inputs(model))), Path("plan.json"))
    trainer: Any = SimpleNamespace(precision_plugin=None, world_size=1, global_step=0)
    module: Any = SimpleNamespace(model=model)
    search.setup(trainer, module, "fit")
    return (
        lambda: search.on_before_optimizer_step(trainer, module, None),
        lambda: search.update(module, STEPS // 2, STEPS),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7, help="pairs of steps that are timed, after one to warm up")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    options = parser.parse_args()
    device = torch.device(options.device)

    torch.manual_seed(0)
    dense, searched = (CLIPModel(CLIPConfig()).train().to(device) for _ in range(2))
    collect, update = masked(searched)
    batch = make_batch(dense, options.batch_size, device)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-5) for model in (dense, searched)]

    def dense_step() -> None:
        step(dense, optimizers[0], batch, options.precision, lambda: None)

    def search_step() -> None:
        step(searched, optimizers[1], batch, options.precision, collect)

    dense_step()
    search_step()
    updates = [timed(update, device) for _ in range(5)]  # before the rounds: these run with masks that have faded
    pairs = [(timed(dense_step, device), timed(search_step, device)) for _ in range(options.rounds)]

    plain, search = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratios = sorted(theirs / ours for ours, theirs in pairs)
    ratio, share = statistics.median(ratios), statistics.median(updates) / (INTERVAL * search)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    table = Table(title=f"CLIP ViT-B/32, batch {options.batch_size}, {options.precision}, {where}")
    for heading in ("what", "median", "ratio", "range", "target"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    table.add_row("dense step", f"{1000 * plain:.1f} ms", "", "", "")
    spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
    table.add_row("search step / dense step", f"{1000 * search:.1f} ms", f"{ratio:.3f}", spread, f"<= {STEP_TARGET}")
    milliseconds = f"{1000 * min(updates):.1f} to {1000 * max(updates):.1f} ms"
    table.add_row(
        f"mask update / {INTERVAL} search steps",
        f"{1000 * statistics.median(updates):.1f} ms",
        f"{share:.3%}",
        milliseconds,
        f"< {UPDATE_TARGET:.0%}",
    )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
