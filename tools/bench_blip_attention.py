"""BLIP's vision tower with the attention that can be cut, timed against Hugging Face's own.

    python tools/bench_blip_attention.py --batch-size 4 --seconds 60
    python tools/bench_blip_attention.py --size large --device cuda --dtype bf16 --batch-size 32

Both towers share their weights, which are random, and run turn by turn in one process.

Target: the swapped tower is at least as fast, and computes the same up to rounding.
"""

from __future__ import annotations

import argparse
import copy

import torch
from rich.console import Console
from rich.table import Table
from transformers import BlipVisionConfig, BlipVisionModel

from upop.families.blip_attention import swap_attention_
from upop.runs.timing import compare_speed

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SIZES = {
    "base": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "large": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="base", help="ViT-B or ViT-L, patches of 16 pixels")
    parser.add_argument("--image-size", type=int, default=384, help="pixels along a side")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=60.0, help="time to spend on the timing, about")
    options = parser.parse_args()

    torch.manual_seed(0)
    config = BlipVisionConfig(**SIZES[options.size], image_size=options.image_size, initializer_range=0.02)
    theirs = BlipVisionModel(config).eval().to(options.device, DTYPES[options.dtype])
    ours = copy.deepcopy(theirs)
    swap_attention_(ours)

    torch.set_default_dtype(DTYPES[options.dtype])  # random images take it
    side = options.image_size
    image = torch.randn(1, 3, side, side, device=options.device)
    with torch.inference_mode():
        difference = (ours(image).last_hidden_state - theirs(image).last_hidden_state).abs().max().item()
    speeds = compare_speed(
        {"Hugging Face": theirs, "swapped": ours}, {"pixel_values": image}, options.batch_size, options.seconds
    )
    first = speeds["Hugging Face"]
    table = Table(
        title=f"BLIP's vision tower, ViT-{options.size[0].upper()}/16, {side} px, batch {options.batch_size}, "
        f"{options.dtype}, {first.device}, {first.rounds} rounds"
    )
    for heading in ("attention", "p50, ms", "p90, ms", "images/s", "speed-up"):
        table.add_column(heading, justify="left" if heading == "attention" else "right")
    for name, speed in speeds.items():
        gain = f"{first.latency_ms / speed.latency_ms:.2f} x" + (" (>= 1)" if speed is not first else "")
        table.add_row(name, f"{speed.latency_ms:.1f}", f"{speed.latency_p90_ms:.1f}", f"{speed.throughput:.1f}", gain)
    console = Console(width=120)
    console.print(table)
    console.print(f"largest difference of the last hidden states: {difference:.1e}")


if __name__ == "__main__":
    main()
