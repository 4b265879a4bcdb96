"""Small data sets on disk and a processor, made in code."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import AutoProcessor

SHAPES = Path("configs/models/shapes")
WORDS = ("red", "green", "blue", "circle", "square", "star")


def processor():
    return AutoProcessor.from_pretrained(SHAPES)


def flickr8k(folder, train=10, val=6, test=6, captions=2, size=20):
    """A Flickr8k of noise: Karpathy's file and images beside it. Image ``n`` has ``captions`` captions of its own."""
    generator = np.random.default_rng(0)
    splits = ["train"] * train + ["val"] * val + ["test"] * test
    (folder / "images").mkdir(parents=True)
    entries = []
    for number, split in enumerate(splits):
        pixels = generator.integers(0, 255, (size, size + 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        words = [" ".join(WORDS[(number * 7 + n * (k + 1)) % 6] for k in range(n + 1)) for n in range(captions)]
        entries.append({"filename": f"{number}.png", "split": split, "sentences": [{"raw": text} for text in words]})
    (folder / "dataset_flickr8k.json").write_text(json.dumps({"images": entries}))
    return {"images": str(folder), "annotations": str(folder)}
