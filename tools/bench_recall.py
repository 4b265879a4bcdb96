"""Time and memory of upop's retrieval recall against a naive numpy argsort, in one run.

python tools/bench_recall.py --images 5000 --captions 25000 --dim 256 --repeat 3

Each way runs in a process of its own: the time is the median of the repeats, the memory is how far the process's peak
resident size is above what it held once the features were made and the libraries were warm.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from upop.metrics import retrieval_recalls

Features = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def features(images: int, captions: int, dim: int) -> Features:
    """Normalised features with signal, ``(I, D)`` and ``(T, D)``, and the image number of each caption."""
    generator = torch.Generator().manual_seed(0)
    caption_image = torch.arange(captions) % images
    image = torch.nn.functional.normalize(torch.randn(images, dim, generator=generator), dim=1)
    noise = torch.nn.functional.normalize(torch.randn(captions, dim, generator=generator), dim=1)
    text = torch.nn.functional.normalize(image[caption_image] + 6.0 * noise, dim=1)
    return image, text, caption_image


def upop_way(image: torch.Tensor, text: torch.Tensor, caption_image: torch.Tensor) -> dict[str, float]:
    return retrieval_recalls(image, text, caption_image)


def naive_way(image: torch.Tensor, text: torch.Tensor, caption_image: torch.Tensor) -> dict[str, float]:
    """The evaluation that retrieval scripts share: the whole score matrix, one argsort per row."""
    scores, owner = image.numpy() @ text.numpy().T, caption_image.numpy()
    recalls = {}
    for way, matrix in (("i2t", scores), ("t2i", scores.T)):
        ranks = np.empty(len(matrix), dtype=np.int64)
        for number, row in enumerate(matrix):
            order = np.argsort(-row)
            hit = owner[order] == number if way == "i2t" else order == owner[number]
            ranks[number] = hit.argmax()
        recalls |= {f"{way}_r{k}": 100.0 * float((ranks < k).mean()) for k in (1, 5, 10)}
    return recalls


WAYS: dict[str, Callable[..., dict[str, float]]] = {"upop": upop_way, "numpy argsort": naive_way}


def held_mib() -> float:
    """Resident size of this process in MiB; its peak so far where the system does not tell."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return peak_mib()
    return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20


def peak_mib() -> float:
    """Peak resident size of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def measure(pipe: Connection, way: str, images: int, captions: int, dim: int, repeat: int) -> None:
    run = WAYS[way]
    data = features(images, captions, dim)
    run(*features(64, 128, dim))  # libraries start their threads and buffers here
    before, seconds, cpu = held_mib(), [], []
    for _ in range(repeat):
        start, start_cpu = time.perf_counter(), time.process_time()
        recalls = run(*data)
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    pipe.send((statistics.median(seconds), statistics.median(cpu), peak_mib() - before, recalls))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--captions", type=int, default=25_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    results = {}
    for way in WAYS:
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=measure, args=(theirs, way, args.images, args.captions, args.dim, args.repeat)
        )
        process.start()
        theirs.close()
        results[way] = ours.recv()
        process.join()
    table = Table(
        title=f"{args.images} images x {args.captions} captions x {args.dim}, {torch.get_num_threads()} threads"
    )
    for heading in ("way", "seconds", "CPU seconds", "extra memory, MiB", "time to upop's", "i2t R@1", "t2i R@1"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for way, (seconds, cpu, memory, recalls) in results.items():
        ratio = f"{seconds / results['upop'][0]:.1f} x"
        table.add_row(
            way,
            f"{seconds:.2f}",
            f"{cpu:.2f}",
            f"{memory:.0f}",
            ratio,
            f"{recalls['i2t_r1']:.2f}",
            f"{recalls['t2i_r1']:.2f}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
