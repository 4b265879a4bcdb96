"""A small NLVR2 and a small NLVR v1 on disk, made in code."""

import json
from itertools import product

import numpy as np
from PIL import Image, ImageDraw

COLOURS = ((255, 255, 0), (0, 0, 0), (0, 153, 255))


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def statement(split, group, pair, sentence, **more):
    """Sentence ``sentence`` about pair ``pair`` of a set; half of them are true."""
    return {
        "identifier": f"{split}-{group}-{pair}-{sentence}",
        "sentence": f"The left image has{' one' * (4 * group + sentence + 1)} dog.",
        "label": str((pair + sentence) % 2 == 0),
        **more,
    }


def nlvr2(folder, train=3, dev=2, test1=2):
    """Two sentences about each of two pairs of a set; ``train`` to ``test1`` are numbers of sets."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("dev", dev), ("test1", test1)):
        rows = []
        for group, pair in product(range(count), range(2)):
            more = {"directory": group % 2} if split == "train" else {}
            images = folder / "images/train" / str(group % 2) if split == "train" else folder / split
            images.mkdir(parents=True, exist_ok=True)
            for side in range(2):
                size = (24, 20) if side else (20, 22)
                pixels = generator.integers(0, 255, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(images / f"{split}-{group}-{pair}-img{side}.png")
            rows += [statement(split, group, pair, sentence, **more) for sentence in range(2)]
        lines(folder / f"{split}.json", rows)
    return {"images": str(folder), "annotations": str(folder)}


def boxes(path, fills):
    """A picture of NLVR v1: three grey boxes with a square of one colour each."""
    picture = Image.new("RGB", (400, 100), (128, 128, 128))
    for place, fill in enumerate(fills):
        drawing = ImageDraw.Draw(picture)
        drawing.rectangle((150 * place, 0, 150 * place + 99, 99), (211, 211, 211))
        drawing.rectangle((150 * place + 20, 60, 150 * place + 59, 99), fill)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.convert("RGBA").save(path)


def nlvr(folder, counts=(("dev", 4), ("hidden", 2), ("test", 3))):
    """Statements about pictures whose first box is yellow, whose second is black and whose third is blue."""
    for part, count in counts:
        rows = []
        for number in range(count):
            identifier = f"{10 + number // 2}-{number % 2}"
            directory = str(number % 2)
            row = {"identifier": identifier, "label": ("true", "false")[number % 2], "sentence": f"A{' box' * number}."}
            rows.append(row if part == "hidden" else {**row, "directory": directory})
            boxes(folder / part / "images" / directory / f"{part}-{identifier}-0.png", COLOURS)
        lines(folder / part / f"{part}.json", rows)
    return {"images": str(folder), "annotations": str(folder)}
