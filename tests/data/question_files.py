"""A small VQA v2 on disk, made in code: the official files, and images of noise."""

import json

import numpy as np
from PIL import Image

ANSWERS = ("red", "two", "yes", "a star")


def image(path, size=(20, 16), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def asked(number, images=5):
    """Question ``number``: which of ``images`` images, and words of which there are as many."""
    return {
        "question_id": 100 + number,
        "image_id": 1 + number % images,
        "question": f"Is{' it' * number}, number {number}?",
    }


def noted(number, images=5, answers=None):
    """Seven people give one answer to question ``number``, two another, one a third."""
    first, second, third = (ANSWERS[(number + step) % len(ANSWERS)] for step in range(3))
    given = answers if answers is not None else [first] * 7 + [second] * 2 + [third]
    told = [{"answer": text, "answer_confidence": "yes", "answer_id": n + 1} for n, text in enumerate(given)]
    return {
        **{key: asked(number, images)[key] for key in ("question_id", "image_id")},
        "question_type": "what is", "answer_type": "other", "multiple_choice_answer": first, "answers": told,
    }  # fmt: skip


def write(path, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"info": {}, **content}))
    return path


def questions_name(part):
    return f"v2_OpenEnded_mscoco_{part}_questions.json"


def annotations_name(part):
    return f"v2_mscoco_{part}_annotations.json"


def vqa_v2(folder, train=12, val=6, test=4, images=5):
    """Parts train2014 and val2014 with answers, test2015 without; question numbers go on from part to part."""
    start = 0
    for part, count in (("train2014", train), ("val2014", val), ("test2015", test)):
        numbers = range(start, start + count)
        write(folder / questions_name(part), questions=[asked(n, images) for n in numbers])
        if part != "test2015":
            write(folder / annotations_name(part), annotations=[noted(n, images) for n in numbers])
        for number in range(1, images + 1):
            image(folder / part / f"COCO_{part}_{number:012d}.jpg", seed=number)
        start += count
    return {"images": str(folder), "annotations": str(folder)}
