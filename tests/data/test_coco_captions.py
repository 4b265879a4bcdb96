"""COCO's own caption files are read, and captions for unknown images are refused."""

import json
from pathlib import Path

import pytest

from upop.data.annotations import Record
from upop.data.coco_captions import find_coco_captions, read_coco_captions

SHARED = Path("../shared/data/coco_mini/annotations")


def written(folder, images, captions, name="captions_val2017.json"):
    entries = [{"id": number, "file_name": f"{number:012d}.jpg"} for number in images]
    told = [{"id": n, "image_id": number, "caption": text} for n, (number, text) in enumerate(captions)]
    (folder / name).write_text(json.dumps({"images": entries, "annotations": told}))
    return folder / name


def test_captions_are_gathered_by_image(tmp_path):
    found = read_coco_captions(written(tmp_path, [7, 5], [(5, "a"), (7, "b"), (5, "c")]))
    assert found == [
        Record("val2017/000000000007.jpg", ("b",), "7"),
        Record("val2017/000000000005.jpg", ("a", "c"), "5"),
    ]


@pytest.mark.parametrize(
    ("images", "captions", "message"),
    [
        (
            [7],
            [(7, "a"), (9, "b"), (8, "c"), (9, "d")],
            r"captions for 2 image ids that .* the first of them \[8, 9\]; add",
        ),
        ([7, 8], [(7, "a")], r"1 of 2 images have no caption or an empty one, the first of them image ids \[8\]"),
        ([7], [(7, "a"), (7, " ")], r"1 of 1 images have no caption or an empty one"),
        ([7, 7], [(7, "a")], "entry 1 of 'images': image id 7 comes twice"),
        ([], [(7, "a")], "has no images; download it again"),
        ([7], [], "has no annotations; download it again"),
        ([7], [("7", "a")], "entry 0 of 'annotations': 'image_id' is text; expected a whole number"),
        ([7], [(7, 3)], "entry 0 of 'annotations': 'caption' is the number 3; expected text"),
    ],
)
def test_a_file_that_is_wrong_is_refused(tmp_path, images, captions, message):
    with pytest.raises(ValueError, match=message):
        read_coco_captions(written(tmp_path, images, captions))


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "captions_val2017.json").write_text('{"images": [], "questions": []}')
    with pytest.raises(
        ValueError, match=r"is not a COCO caption file: .*, found an object with keys \['images', 'questio"
    ):
        read_coco_captions(tmp_path / "captions_val2017.json")


def test_both_files_of_a_year_are_needed(tmp_path):
    assert find_coco_captions(tmp_path) is None
    train = written(tmp_path, [7], [(7, "a")], "captions_train2017.json")
    with pytest.raises(FileNotFoundError, match=r"holds 'captions_train2017\.json' but not 'captions_val2017\.json'"):
        find_coco_captions(tmp_path)
    assert find_coco_captions(written(tmp_path, [8], [(8, "a")]).parent) == (train, tmp_path / "captions_val2017.json")


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs {SHARED}")
def test_the_real_files():
    for part, count in (("train2017", 80), ("val2017", 79)):
        found = read_coco_captions(SHARED / f"captions_{part}.json")
        assert len(found) == count
        assert all(len(record.captions) == 5 and record.image.startswith(part) for record in found)
