"""Time of a search step and of a guarded step over a dense training step, and of a mask update over those between two.

    python tools/bench_search.py --device cpu --batch-size 32 --rounds 7

A CLIP ViT-B/32 with random weights, dense and masked, takes training steps in turn (dense, guarded, masked, dense, ...)
in one process, so that a drift of the machine hits all alike: a ratio is the median over the rounds. A step is the
forward pass of both towers, the contrastive loss, the backward pass and AdamW; a guarded step also looks whether loss
and gradients are finite, as every phase does; a search step looks, too, and collects the mask gradients, by the
callback's own hook. As a guard takes less than steps vary, the time of its check alone is shown, too, over the dense
step. An update ranks all units, selects what goes and writes the masks.

Targets: a search step takes at most 1.05 dense steps, the guard at most 1 % of one, an update at most 1 % of the 50
steps between two updates.
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

from upop.callbacks import ProgressiveSearch, StepGuard
from upop.cost import CostModel, measure
from upop.families import example_inputs, find_sites, image_features, text_features
from upop.tasks.contrast import contrastive

INTERVAL = 50  # steps between two updates
STEPS = 20 * INTERVAL  # of the whole search
STEP_TARGET, GUARD_TARGET, UPDATE_TARGET = 1.05, 0.01, 0.01


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
    collect: Callable[[torch.Tensor], None],
) -> None:
    """One training step; ``collect`` gets the loss between the backward pass and the optimizer."""
    device = batch["images"].device
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        images = F.normalize(image_features(model, batch["images"]), dim=-1)
        texts = F.normalize(text_features(model, batch["texts"]), dim=-1)
        loss = contrastive(images, texts, model.logit_scale.exp(), torch.arange(len(images), device=device))
    loss.backward()
    collect(loss.detach())
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


def guarded(model: nn.Module) -> Callable[[torch.Tensor], None]:
    """What guards a step of ``model``, by the hooks of the callback."""
    guard, (trainer, module) = StepGuard(), stand_ins(model)

    def check(loss: torch.Tensor) -> None:
        guard.on_before_backward(trainer, module, loss)
        guard.on_before_optimizer_step(trainer, module, None)
        trainer.global_step += 1

    return check


def stand_ins(model: nn.Module, *callbacks: Any) -> tuple[Any, Any]:  # noqa: ANN401 (Lightning's callbacks)
    """What the callbacks need of a trainer and of a task."""
    trainer = SimpleNamespace(precision_plugin=None, world_size=1, global_step=0, callbacks=list(callbacks))
    trainer.strategy = SimpleNamespace(broadcast=lambda value: value)
    device = next(model.parameters()).device
    return trainer, SimpleNamespace(model=model, parameters=model.parameters, buffers=model.buffers, device=device)


def masked(model: nn.Module) -> tuple[Callable[[torch.Tensor], None], Callable[[], None]]:
    """Mask ``model``; returns what guards the step and collects the mask gradients, and what updates the masks."""
    search = ProgressiveSearch(removed=0.5, interval=INTERVAL)
    sites = find_sites(model, search.units)
    search.bind(sites, CostModel(sites, measure(model, sites, example_inputs(model))), Path("plan.json"))
    guard = StepGuard()
    trainer, module = stand_ins(model, guard)
    search.setup(trainer, module, "fit")

    def collect(loss: torch.Tensor) -> None:
        guard.on_before_backward(trainer, module, loss)
        search.on_before_optimizer_step(trainer, module, None)
        guard.on_before_optimizer_step(trainer, module, None)
        trainer.global_step += 1

    return collect, lambda: search.update(module, STEPS // 2, STEPS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of steps that are timed, after one to warm up")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    options = parser.parse_args()
    device = torch.device(options.device)

    torch.manual_seed(0)
    dense, searched = (CLIPModel(CLIPConfig()).train().to(device) for _ in range(2))
    collect, update = masked(searched)
    batch = make_batch(dense, options.batch_size, device)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-5) for model in (dense, searched)]

    check, alone = guarded(dense), []

    def dense_step() -> None:
        step(dense, optimizers[0], batch, options.precision, lambda _: None)

    def guarded_step() -> None:
        step(
            dense,
            optimizers[0],
            batch,
            options.precision,
            lambda loss: alone.append(timed(lambda: check(loss), device)),
        )

    def search_step() -> None:
        step(searched, optimizers[1], batch, options.precision, collect)

    dense_step()
    guarded_step()
    search_step()
    alone.clear()
    updates = [timed(update, device) for _ in range(5)]  # before the rounds: these run with masks that have faded
    steps = (dense_step, guarded_step, search_step)
    rounds = [tuple(timed(one, device) for one in steps) for _ in range(options.rounds)]

    plain, guard, search = (statistics.median(times) for times in zip(*rounds, strict=True))
    share = statistics.median(updates) / (INTERVAL * search)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    table = Table(title=f"CLIP ViT-B/32, batch {options.batch_size}, {options.precision}, {where}")
    for heading in ("what", "median", "ratio", "range", "target"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    table.add_row("dense step", f"{1000 * plain:.1f} ms", "", "", "")
    for name, place, median in (("guarded", 1, guard), ("search", 2, search)):
        ratios = sorted(times[place] / times[0] for times in rounds)
        ratio, spread = f"{statistics.median(ratios):.3f}", f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
        target = f"<= {STEP_TARGET}" if name == "search" else ""
        table.add_row(f"{name} step / dense step", f"{1000 * median:.1f} ms", ratio, spread, target)
    table.add_row(
        "guard alone / dense step",
        f"{1000 * statistics.median(alone):.1f} ms",
        f"{statistics.median(alone) / plain:.3%}",
        f"{1000 * min(alone):.1f} to {1000 * max(alone):.1f} ms",
        f"< {GUARD_TARGET:.0%}",
    )
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
