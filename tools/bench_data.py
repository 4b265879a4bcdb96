"""Time and memory of reading annotation files, over those of a bare json.load of the same files.

    python tools/bench_data.py --pairs 20000 100000 500000 --markdown docs/scaling.md

Files of the layouts that people download are made up in a temporary directory, with an empty file for every image:
Karpathy's file of COCO, BLIP's lists of Flickr30k (five captions an image each) and VQA v2 (questions and annotations,
ten answers each). For each, one fresh process does nothing but ``json.load`` all files and hold what they say, and
another one opens the data module (``data.check()``: read, check, look for the images). Imports count in neither.

Seconds are CPU time of the process, the least of the repeats, so that a busy machine shows less; memory is the largest
resident size above that before. What stays is the resident size afterwards, once the garbage is collected.

Targets: at most 3 times the time of json.load, or 5 microseconds a pair where there is next to nothing to parse; and at
most 2 times its memory.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tables import show

TIME_TARGET, PAIR_TARGET, MEMORY_TARGET = 3.0, 5.0, 2.0
PER_IMAGE = 5
VOCABULARY = (
    "a man woman child dog cat horse street table kitchen bus train red white black small large old young "
    "sitting standing riding walking holding eating with on near behind in front of the two three people group sign"
)
WORDS = VOCABULARY.split()


def sentence(draw: random.Random) -> str:
    """Ten words and a full stop, about as long as a caption."""
    return " ".join(draw.choices(WORDS, k=10)) + " ."


def dump(data: Any, path: Path) -> None:  # noqa: ANN401 (anything that JSON can hold)
    path.write_text(json.dumps(data))


def touch(folder: Path, names: list[str]) -> None:
    """Make empty files."""
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch()


def karpathy(folder: Path, pairs: int) -> None:
    """``dataset_coco.json``, a hundredth of it val and as much test."""
    draw, images, captions = random.Random(0), [], 0
    for number in range(pairs // PER_IMAGE):
        said = [sentence(draw) for _ in range(PER_IMAGE)]
        ids = list(range(captions, captions := captions + PER_IMAGE))
        images.append({
            "filepath": "train2014", "sentids": ids, "filename": f"COCO_train2014_{number:012d}.jpg", "imgid": number,
            "split": {0: "val", 1: "test"}.get(number % 100, "train"),
            "sentences": [
                {"tokens": raw.split()[:-1], "raw": raw, "imgid": number, "sentid": identity}
                for raw, identity in zip(said, ids, strict=True)
            ],
            "cocoid": number + 1,
        })  # fmt: skip
    dump({"images": images, "dataset": "coco"}, folder / "dataset_coco.json")
    touch(folder / "images" / "train2014", [image["filename"] for image in images])


def blip(folder: Path, pairs: int) -> None:
    """Flickr30k in BLIP's three lists."""
    draw = random.Random(0)
    names = [f"{number:08d}.jpg" for number in range(pairs // PER_IMAGE)]
    said = {name: [sentence(draw) for _ in range(PER_IMAGE)] for name in names}
    held = {"val": names[0::100], "test": names[1::100]}
    for split, of in held.items():
        dump(
            [{"image": f"flickr30k-images/{name}", "caption": said[name]} for name in of],
            folder / f"flickr30k_{split}.json",
        )
    train = [
        {"image": f"flickr30k-images/{name}", "caption": caption, "image_id": number}
        for number, name in enumerate(names) if number % 100 > 1
        for caption in said[name]
    ]  # fmt: skip
    dump(train, folder / "flickr30k_train.json")
    touch(folder / "images" / "flickr30k-images", names)


def vqa(folder: Path, questions: int) -> None:
    """VQA v2's questions and annotations, a tenth of them ``val2014``; test is val."""
    draw = random.Random(0)
    answers = [f"{one} {other}" for one in WORDS for other in WORDS]
    for part, count, start in (("train", questions - questions // 10, 0), ("val", questions // 10, questions)):
        asked, noted, images = [], [], set()
        for number in range(start, start + count):
            image = number // PER_IMAGE
            images.add(f"COCO_{part}2014_{image:012d}.jpg")
            usual = draw.choice(answers[:300])
            given = [usual if draw.random() < 0.7 else draw.choice(answers) for _ in range(10)]
            asked.append({"image_id": image, "question": f"What is {sentence(draw)[:30]}?", "question_id": number})
            noted.append({
                "question_type": "what is", "multiple_choice_answer": usual,
                "answers": [
                    {"answer": answer, "answer_confidence": "yes", "answer_id": place + 1}
                    for place, answer in enumerate(given)
                ],
                "image_id": image, "answer_type": "other", "question_id": number,
            })  # fmt: skip
        dump({"questions": asked}, folder / f"v2_OpenEnded_mscoco_{part}2014_questions.json")
        dump({"annotations": noted}, folder / f"v2_mscoco_{part}2014_annotations.json")
        touch(folder / "images" / f"{part}2014", sorted(images))


LAYOUTS: dict[str, tuple[str, Callable[[Path, int], None], str, dict[str, Any]]] = {
    "karpathy": ("COCO, Karpathy's file", karpathy, "CocoRetrieval", {}),
    "blip": ("Flickr30k, BLIP's lists", blip, "Flickr30kRetrieval", {}),
    "vqa": ("VQA v2", vqa, "VqaV2", {"train": ["train2014"], "test": ["val2014"]}),
}


def held() -> int:
    """Resident bytes of this process; its peak so far where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else peak()


def peak() -> int:
    """Largest resident size of this process so far, in bytes; where the system tells, without that of its parent."""
    status = Path("/proc/self/status")
    if status.exists():  # a new process begins with its parent's ru_maxrss
        (most,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(most.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@dataclass(frozen=True)
class Found:
    """CPU seconds, and bytes above the start: the most, and what stays."""

    seconds: float
    most: int
    stays: int


def measure(pipe: Connection, layout: str, folder: str, ours: bool) -> None:
    kept: list[Any] = []

    def bare() -> None:
        for file in sorted(Path(folder).glob("*.json")):
            with file.open("rb") as source:
                kept.append(json.load(source))

    work = bare
    if ours:
        import upop.data

        _, _, name, settings = LAYOUTS[layout]
        data = getattr(upop.data, name)(images=f"{folder}/images", annotations=folder, **settings)
        work = data.check
    gc.collect()
    before, start = held(), time.process_time()
    work()
    seconds = time.process_time() - start
    most = peak() - before
    gc.collect()
    pipe.send(Found(seconds, most, held() - before))


def run(layout: str, folder: Path, ours: bool, repeat: int) -> Found:
    """The least of some fresh processes."""
    found = []
    for _ in range(repeat):
        here, there = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(there, layout, str(folder), ours))
        process.start()
        there.close()
        found.append(here.recv())
        process.join()
    return Found(*(min(getattr(one, field) for one in found) for field in ("seconds", "most", "stays")))


def row(layout: str, pairs: int, directory: str | None, repeat: int) -> list[str]:
    """Make the files, measure, and say it in words."""
    title, make, _, _ = LAYOUTS[layout]
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        make(Path(folder), pairs)
        size = sum(file.stat().st_size for file in Path(folder).glob("*.json"))
        plain, ours = (run(layout, Path(folder), which, repeat) for which in (False, True))
    return [
        title, f"{pairs:,}", f"{size / 1e6:.0f} MB", f"{plain.seconds:.2f} s", f"{ours.seconds:.2f} s",
        f"{ours.seconds / plain.seconds:.2f}", f"{1e6 * ours.seconds / pairs:.1f} us",
        f"{plain.most / 1e6:.0f} MB", f"{ours.most / 1e6:.0f} MB",
        f"{ours.most / plain.most:.2f}", f"{ours.stays / 1e6:.0f} MB",
    ]  # fmt: skip


HEADINGS = (
    "files", "pairs", "size", "json.load", "upop", f"time ratio (<= {TIME_TARGET:g})",
    f"or a pair (<= {PAIR_TARGET:g} us)", "json.load, most", "upop, most",
    f"memory ratio (<= {MEMORY_TARGET:g})", "upop, stays",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[20_000, 100_000, 500_000])
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--repeat", type=int, default=2, help="fresh processes of each; the least counts")
    parser.add_argument("--directory", help="where to make the files, for a while (default: the temporary folder)")
    parser.add_argument("--markdown", type=Path, help="also put the table between the marks of this file")
    options = parser.parse_args()
    layouts, sizes = options.layouts, options.pairs
    rows = [row(layout, pairs, options.directory, options.repeat) for layout in layouts for pairs in sizes]
    show([("annotations", [list(HEADINGS), *rows])], options.markdown, "bench_data")


if __name__ == "__main__":
    main()
