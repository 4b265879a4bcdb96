"""What a search needs on one GPU, on 8 and on 64, projected from counts: nothing here is measured.

    python tools/project_scaling.py --markdown docs/scaling.md

One search step of the retrieval recipes in ``configs/`` is counted in bf16-mixed (``scaling_counts.py``): FLOPs, bytes
on a GPU, and the bytes that GPUs send each other under ``ddp`` and under ``fsdp2``. Seconds follow from what the
options assume of the GPUs and their links; the defaults are those of A100s, eight to a node.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from scaling_counts import ADAMW, GB, Count, count, pretending
from tables import Cells, show

ROOT = Path(__file__).parent.parent


PAIRS = {"CocoRetrieval": 566_747, "Flickr30kRetrieval": 145_000}
"""Training captions of Karpathy's splits."""


LAYOUTS = (
    (1, 32, "one"), (8, 32, "ddp"), (8, 32, "fsdp2"), (64, 4, "ddp"), (64, 4, "fsdp2"), (64, 32, "ddp"),
    (64, 32, "fsdp2"),
)  # fmt: skip
"""GPUs, pairs on each, and the strategy."""


RECIPE_HEADINGS = (
    "model", "GPUs x batch", "strategy", "memory", "of it kept for backward", "sent per step", "compute", "network",
    "step", "COCO: search, all", "Flickr30K: search, all",
)  # fmt: skip


STEP_HEADINGS = (
    "model", "parameters", "of momentum encoders", "mask numbers", "TFLOPs per pair", "kept per pair",
    "kept whatever the batch", "all-reduced (ddp)", "gathered + scattered (fsdp2)", "masks' gradients",
)  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """What a projection assumes of the GPUs and the links between them.

    Attributes:
        flops: FLOPs per second of a GPU in bf16, as its maker states.
        used: Share of them that training reaches.
        inside: Bytes per second that a GPU sends within its node.
        between: Bytes per second that a GPU sends where the nodes are several.
        node: GPUs of a node.
    """

    flops: float
    used: float
    inside: float
    between: float
    node: int


def clip_large() -> Any:  # noqa: ANN401
    """The architecture of openai/clip-vit-large-patch14-336."""
    from transformers import CLIPConfig, CLIPModel

    def tower(width: int, layers: int) -> dict[str, int]:
        heads = {"num_attention_heads": width // 64, "num_hidden_layers": layers}
        return {"hidden_size": width, "intermediate_size": 4 * width, **heads}

    vision = tower(1024, 24) | {"image_size": 336, "patch_size": 14}
    return CLIPModel(CLIPConfig(text_config=tower(768, 12), vision_config=vision, projection_dim=768))


def blip(large: bool) -> Any:  # noqa: ANN401
    """The architecture of Salesforce/blip-itm-base-coco or -large-coco."""
    from transformers import BlipConfig, BlipForImageTextRetrieval

    from upop.families.blip_attention import swap_attention_

    width, layers = (1024, 24) if large else (768, 12)
    vision = {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 64,
        "intermediate_size": 4 * width, "image_size": 384, "patch_size": 16,
    }  # fmt: skip
    text = {"encoder_hidden_size": width, "num_attention_heads": 12}
    model = BlipForImageTextRetrieval(BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=256))
    swap_attention_(model)
    return model


MODELS: dict[str, tuple[Callable[[], Any], str, str, str]] = {
    "CLIP-L/14@336": (clip_large, "coco_retrieval", "flickr30k_retrieval", ""),
    "BLIP-B": (lambda: blip(large=False), "blip_retrieval", "blip_retrieval", "blip_retrieval_flickr30k"),
    "BLIP-L": (lambda: blip(large=True), "blip_retrieval", "blip_retrieval", "blip_retrieval_flickr30k"),
}


def read(name: str, overlay: str = "") -> dict[str, Any]:
    """A recipe of ``configs/``, with an overlay."""
    import yaml

    config: dict[str, Any] = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    if overlay:
        for key, value in yaml.safe_load((ROOT / "configs/overlays" / f"{overlay}.yaml").read_text()).items():
            config[key] = config[key] | value if isinstance(config.get(key), dict) else value
    return config


def recipe_step(make: Callable[[], Any], config: Mapping[str, Any], batch: int) -> tuple[Any, Callable[[], Any]]:
    """The task of a recipe with its model, and one training step of it."""
    import torch

    import upop.tasks

    settings = copy.deepcopy(config["model"]["init_args"]) | {"checkpoint": "none"}
    if "negatives" in settings:
        settings["negatives"] = "batch"  # on one rank there are no others; what they send is added later
    task = getattr(upop.tasks, config["model"]["class_path"].rpartition(".")[2])(**settings)

    def twin(model: Any) -> Any:  # noqa: ANN401 (fake tensors cannot be copied, but another model is as good)
        return make().eval().requires_grad_(False)

    with mock.patch("upop.tasks.retrieval.frozen_copy", twin):
        task.adopt(make(), None)
    facts = {"world_size": 1, "global_rank": 0, "global_step": 0, "estimated_stepping_batches": 1, "strategy": None}
    task.trainer = SimpleNamespace(**facts)
    task.log = task.log_dict = lambda *_, **__: None
    side, length = task.model.config.vision_config.image_size, config["data"]["init_args"].get("text_length", 77)
    ids = torch.ones(batch, length, dtype=torch.long)
    given = {
        "pixel_values": torch.randn(batch, 3, side, side), "input_ids": ids, "attention_mask": torch.ones_like(ids),
        "image_index": torch.arange(batch),
    }  # fmt: skip

    def step() -> Any:  # noqa: ANN401
        with mock.patch("upop.tasks.reranked.draw_negatives", lambda logits, *_: logits.argmax(1)):  # noise is not fake
            task.on_train_batch_start(given, 0)  # the momentum encoders move here
            return task.training_step(given, 0)

    return task, step


def at(batch: int, few: tuple[int, Count], many: tuple[int, Count], field: str) -> float:
    """A count at a batch size, on the line through two others."""
    (low, least), (high, most) = few, many
    slope = (getattr(most, field) - getattr(least, field)) / (high - low)
    return float(getattr(least, field) + slope * (batch - low))


def memory(found: Count, kept: float, gpus: int, sharded: bool, states: float) -> float:
    """Bytes on each GPU: weights, gradients, moments, momentum encoders, queue, buckets or gathered parts, the rest.

    Args:
        found: Counts of the model.
        kept: Bytes kept for the backward pass.
        gpus: How many there are.
        sharded: FSDP2 instead of DDP.
        states: Bytes of what is gathered from all ranks for hard negatives.
    """
    whole = ADAMW * found.params + 4 * found.frozen
    if sharded:  # a part and the next one are whole, and the gradient of one
        whole = whole / gpus + 3 * 4 * found.largest
    elif gpus > 1:
        whole += 4 * found.params  # DDP's buckets
    return whole + found.buffers + kept + 2 * states


def sent(found: Count, gpus: int, sharded: bool, states: float) -> dict[str, float]:
    """Bytes that each GPU sends in a step, around a ring.

    An all-reduce sends every byte twice, an all-gather or a reduce-scatter once, less this rank's share.
    """
    share = (gpus - 1) / gpus
    if sharded:  # forward and backward gather; then the gradients are scattered. The momentum encoders go forward once
        weights = share * 4 * (2 * found.gathered + found.params + found.frozen)
    else:
        weights = 2 * share * 4 * found.params
    return {"weights": weights, "masks": 2 * share * 4 * found.units, "states": 3 * share * states}


def recipes(machine: Machine) -> list[tuple[str, list[Cells]]]:
    """Count the recipes' steps and project them; tables by name."""
    steps, rows = [], []
    for name, (make, coco, flickr, overlay) in MODELS.items():
        configs = {"CocoRetrieval": read(coco), "Flickr30kRetrieval": read(flickr, overlay)}
        step = partial(recipe_step, make, configs["CocoRetrieval"])
        few, many = ((batch, count(partial(step, batch), bf16=True)) for batch in (4, 32))
        gathers = configs["CocoRetrieval"]["model"]["init_args"].get("negatives") == "all_ranks"
        state = image_states(make) if gathers else 0
        steps.append(step_row(name, few, many))
        rows += [projected(name, few, many, layout, machine, state, configs) for layout in LAYOUTS]
    return [("steps", [list(STEP_HEADINGS), *steps]), ("projection", [list(RECIPE_HEADINGS), *rows])]


def step_row(name: str, few: tuple[int, Count], many: tuple[int, Count]) -> Cells:
    """What the counts say of one model, before any number of GPUs."""
    found = many[1]
    per_pair, fixed = at(1, few, many, "kept") - at(0, few, many, "kept"), at(0, few, many, "kept")
    return [
        name, f"{found.params / 1e6:.0f} M", f"{found.frozen / 1e6:.0f} M", f"{found.units:,}",
        f"{found.flops / many[0] / 1e12:.2f}", f"{per_pair / 1e6:.0f} MB", f"{fixed / GB:.2f} GB",
        f"{4 * found.params / GB:.2f} GB",
        f"{4 * (2 * found.gathered + found.frozen) / GB:.2f} + {4 * found.params / GB:.2f} GB",
        f"{4 * found.units / 1e6:.2f} MB",
    ]  # fmt: skip


def image_states(make: Callable[[], Any]) -> int:
    """Bytes of one image's states in fp32, which hard negatives of all ranks send around."""
    with pretending():
        vision = make().config.vision_config
    return 4 * ((vision.image_size // vision.patch_size) ** 2 + 1) * int(vision.hidden_size)


def projected(
    name: str,
    few: tuple[int, Count],
    many: tuple[int, Count],
    layout: tuple[int, int, str],
    machine: Machine,
    state: int,
    configs: Mapping[str, Mapping[str, Any]],
) -> Cells:
    """One row of the projection."""
    gpus, batch, strategy = layout
    found, kept = many[1], at(batch, few, many, "kept")
    states = float(state * batch * gpus) if gpus > 1 else 0.0
    sharded = strategy == "fsdp2"
    bytes_sent = sum(sent(found, gpus, sharded, states).values())
    compute = at(batch, few, many, "flops") / (machine.flops * machine.used)
    network = bytes_sent / (machine.inside if gpus <= machine.node else machine.between)
    hours = []
    for data, config in configs.items():
        epochs = [config[phase]["epochs"] for phase in ("search", "finetune", "retrain")]
        per_epoch = PAIRS[data] // (gpus * batch) * (compute + network) / 3600
        hours.append(f"{epochs[0] * per_epoch:.1f} h, {sum(epochs) * per_epoch:.1f} h")
    return [
        name, f"{gpus} x {batch}", strategy, f"{memory(found, kept, gpus, sharded, states) / GB:.1f} GB",
        f"{kept / GB:.1f} GB", f"{bytes_sent / GB:.2f} GB", f"{1000 * compute:.0f} ms", f"{1000 * network:.0f} ms",
        f"{1000 * max(compute, network):.0f} to {1000 * (compute + network):.0f} ms", *hours,
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tflops", type=float, default=312.0, help="TFLOP/s of a GPU in bf16 (312: A100)")
    parser.add_argument("--used", type=float, default=0.35, help="share of them that training reaches")
    parser.add_argument("--inside", type=float, default=200.0, help="GB/s that a GPU sends within a node")
    parser.add_argument("--between", type=float, default=25.0, help="GB/s that a GPU sends between nodes (200 Gbit/s)")
    parser.add_argument("--node", type=int, default=8, help="GPUs of a node")
    parser.add_argument("--markdown", type=Path, help="also put the tables between the marks of this file")
    options = parser.parse_args()
    machine = Machine(options.tflops * 1e12, options.used, options.inside * GB, options.between * GB, options.node)
    show(recipes(machine), options.markdown, "project_scaling")


if __name__ == "__main__":
    main()
