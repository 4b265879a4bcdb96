"""Time per query of batched re-ranking, held against a loop that scores one pair at a time.

    OMP_NUM_THREADS=1 python tools/bench_reranking.py
    python tools/bench_reranking.py --model runs/NAME/compressed --device cuda --images 1000 --k 128

Image states are encoded once, outside the clock; no contestant computes them again. ``one by one`` is a forward pass
per pair, without padding. ``query by query`` is what the authors do: a pass per query, its pairs side by side, texts
padded to the full length. ``batched`` is what the task does: the pairs of both directions put together, each scored
once, sorted by image and length, keys and values of an image computed once per pass; finding the candidates is on its
clock. The first two are timed on a sample of the queries, in turns with ``batched`` on all. Without ``--model``, a BLIP
with random weights; the texts are random, and as long as captions are.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import BlipConfig, BlipForImageTextRetrieval

from upop.export import load
from upop.families import text_features
from upop.tasks.candidates import find_candidates, score_pairs
from upop.tasks.matching import match

LENGTH = 35
"""Tokens that BLIP pads a caption to."""


def small_blip(layers: int, width: int, size: int) -> Any:  # noqa: ANN401 (a Hugging Face model)
    shared = {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // 64), "initializer_range": 0.02,
    }  # fmt: skip
    return BlipForImageTextRetrieval(
        BlipConfig(
            vision_config={**shared, "image_size": size}, text_config={**shared, "vocab_size": 4000, "bos_token_id": 1}
        )
    ).eval()


class Gallery:
    """Random images and texts, encoded, and what each query is compared with."""

    def __init__(self, model: Any, images: int, captions: int, k: int, device: str) -> None:  # noqa: ANN401
        side = model.config.vision_config.image_size
        texts = images * captions
        lengths = torch.randint(8, 20, (texts, 1), device=device)  # COCO's: 8 to 19 tokens nearly all, 12 on average
        self.mask = (torch.arange(LENGTH, device=device) < lengths).long()
        self.ids = torch.randint(5, 4000, (texts, LENGTH), device=device) * self.mask
        states = [
            model.vision_model(pixel_values=torch.randn(len(part), 3, side, side, device=device)).last_hidden_state
            for part in torch.arange(images).split(32)
        ]
        self.states = dict(enumerate(torch.cat(states)))
        self.images = F.normalize(model.vision_proj(torch.cat(states)[:, 0]), dim=1)
        parts = zip(self.ids.split(256), self.mask.split(256), strict=True)
        self.texts = F.normalize(torch.cat([text_features(model, *part) for part in parts]), dim=1)
        self.found = find_candidates(self.images, self.texts, k)
        self.queries = images + texts

    def query(self, number: int) -> tuple[list[int], list[int]]:
        """Images and texts of the pairs of a query; images are asked first, then texts."""
        if number < len(self.images):
            texts = self.found.texts[number].tolist()
            return [number] * len(texts), texts
        images = self.found.images[number - len(self.images)].tolist()
        return images, [number - len(self.images)] * len(images)


def one_by_one(model: Any, gallery: Gallery, query: int) -> list[Tensor]:  # noqa: ANN401
    scores = []
    for image, text in zip(*gallery.query(query), strict=True):
        length = int(gallery.mask[text].sum())
        ids, mask = gallery.ids[text, :length][None], gallery.mask[text, :length][None]
        scores.append(match(model, gallery.states[image][None], ids, mask)[0, 1])
    return scores


def at_once(model: Any, gallery: Gallery, query: int) -> list[Tensor]:  # noqa: ANN401
    images, texts = gallery.query(query)
    states = torch.stack([gallery.states[image] for image in images])
    return list(match(model, states, gallery.ids[texts], gallery.mask[texts])[:, 1])


def batched(model: Any, gallery: Gallery, k: int, most: int) -> Tensor:  # noqa: ANN401
    """Matching scores of all queries, ``(queries, k)``."""
    image, text, place = find_candidates(gallery.images, gallery.texts, k).pairs()
    return score_pairs(model, gallery.states, image, text, gallery.ids, gallery.mask, most)[place].view(-1, k)


def timed(work: Callable[[], Any], device: str) -> tuple[float, Any]:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def compare(model: Any, gallery: Gallery, options: argparse.Namespace) -> tuple[dict[str, list[float]], float]:  # noqa: ANN401
    """Milliseconds per query of each way, round by round, and the largest difference between two of their scores."""
    sample = torch.linspace(0, gallery.queries - 1, options.queries).long().tolist()
    times: dict[str, list[float]] = {"one by one": [], "query by query": [], "batched": []}
    worst = 0.0
    for number in range(options.rounds + 1):
        spent, whole = timed(lambda: batched(model, gallery, options.k, options.eval_pairs), options.device)
        taken = {"batched": spent / gallery.queries}
        for name, score in (("one by one", one_by_one), ("query by query", at_once)):
            spent, found = timed(lambda score=score: [score(model, gallery, query) for query in sample], options.device)
            taken[name] = spent / len(sample)
            worst = max(worst, float((torch.stack([torch.stack(row) for row in found]) - whole[sample]).abs().max()))
        for name, seconds in taken.items() if number else ():  # the first round warms up
            times[name].append(1000 * seconds)
    return times, worst


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="BLIP retrieval model directory or hub name (default: a small random one)")
    parser.add_argument("--layers", type=int, default=6, help="of each tower of the random model")
    parser.add_argument("--width", type=int, default=256, help="of both towers of the random model")
    parser.add_argument("--size", type=int, default=128, help="pixels along a side, of the random model")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--captions", type=int, default=5, help="texts per image")
    parser.add_argument("--k", type=int, default=16, help="candidates of each query")
    parser.add_argument("--eval-pairs", type=int, default=256, help="pairs per forward pass of the batched way")
    parser.add_argument("--queries", type=int, default=16, help="queries of the sample that the loops are timed on")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    torch.manual_seed(0)
    model: Any = load(options.model)[0] if options.model else small_blip(options.layers, options.width, options.size)
    gallery = Gallery(model.to(options.device), options.images, options.captions, options.k, options.device)
    times, worst = compare(model, gallery, options)

    where = f"cpu, {torch.get_num_threads()} threads" if options.device == "cpu" else torch.cuda.get_device_name()
    title = options.model or f"BLIP, {options.layers} layers, {options.width} wide, {options.size} px"
    table = Table(
        title=f"{title}, {options.images} images x {options.captions} texts, k {options.k}, {options.eval_pairs} pairs "
        f"per pass, fp32, {where}, {options.rounds} rounds"
    )
    for heading in ("way", "ms per query, median", "least", "most", "speed-up over one by one"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    base = statistics.median(times["one by one"])
    for name, found in times.items():
        median = statistics.median(found)
        table.add_row(name, f"{median:.2f}", f"{min(found):.2f}", f"{max(found):.2f}", f"{base / median:.1f} x")
    console = Console(width=120)
    console.print(table)
    console.print(f"largest difference between the scores of two ways: {worst:.1e}")


if __name__ == "__main__":
    main()
