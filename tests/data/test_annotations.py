"""What the annotation files say becomes records, and whatever they get wrong is named."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upop.data.annotations import Record, read_blip, read_karpathy, read_splits
from upop.data.retrieval import CocoRetrieval, Flickr8kRetrieval, Flickr30kRetrieval

FLICKR8K = Path("../shared/data/flickr8k")
LISTS = {"train": "t.json", "val": "v.json", "test": "e.json"}


def entry(name, split="train", captions=("a dog",), **more):
    return {"filename": name, "split": split, "sentences": [{"raw": caption} for caption in captions], **more}


def three(*more):
    return [entry("a.jpg"), entry("b.jpg", "val"), entry("c.jpg", "test"), *more]


def karpathy(folder, images, name="dataset_x.json"):
    path = folder / name
    text = json.dumps({"images": images, "dataset": "x"}).encode()
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return path


def blip(folder, **lists):
    rows = {"train": [{"image": "a.jpg", "caption": "x"}], "val": [{"image": "b.jpg", "caption": ["y"]}]}
    for split, row in {**rows, "test": [{"image": "c.jpg", "caption": ["z", "w"]}], **lists}.items():
        (folder / LISTS[split]).write_text(json.dumps(row))
    return folder


@pytest.mark.parametrize("name", ["dataset_x.json", "dataset_x.json.gz"])
@pytest.mark.parametrize("given_directory", [True, False])
def test_a_karpathy_file_is_read_and_restval_is_trained_on(tmp_path, name, given_directory):
    more = entry("d.jpg", "restval", ("one", "two"), filepath="val2014", cocoid=7)
    path = karpathy(tmp_path, three(more), name)
    splits = read_splits(tmp_path if given_directory else path, "x", LISTS)
    assert splits["train"] == [Record("a.jpg", ("a dog",), "a"), Record("val2014/d.jpg", ("one", "two"), "7")]
    assert [record.image for record in splits["test"]] == ["c.jpg"]


def test_blip_lists_are_grouped_by_image_and_come_before_a_karpathy_file(tmp_path):
    karpathy(tmp_path, three())
    train = [{"image": name, "caption": text, "image_id": name[0]} for name, text in [("p.jpg", "1"), ("q.jpg", "2")]]
    blip(tmp_path, train=[*train, {"image": "p.jpg", "caption": "3", "image_id": "p"}])
    splits = read_splits(tmp_path, "x", LISTS)
    assert splits["train"] == [Record("p.jpg", ("1", "3"), "p"), Record("q.jpg", ("2",), "q")]
    assert splits["test"] == [Record("c.jpg", ("z", "w"), "c")]


@given(st.lists(st.tuples(st.integers(0, 5), st.text(min_size=1, max_size=9)), min_size=1))
def test_grouping_keeps_every_caption_in_order(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("blip") / "t.json"
    path.write_text(json.dumps([{"image": f"{image}.jpg", "caption": text} for image, text in rows]))
    records = read_blip(path)
    for record in records:
        assert list(record.captions) == [text for image, text in rows if f"{image}.jpg" == record.image]
    assert sum(len(record.captions) for record in records) == len(rows)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({"a": 1}, "expected an object with a list 'images'"),
        ([3], "entry 0 of 'images' is the number 3; expected an object with 'filename'"),
        (three({"split": "train"}), r"entry 3 of 'images': 'filename' is missing \(keys are \['split'\]\)"),
        (three(entry("d.jpg", "dev")), r"entry 3 of 'images': 'split' is 'dev'; expected one of \['restval', 'test'"),
        (three({**entry("d.jpg"), "sentences": "dog"}), "entry 3 of 'images': 'sentences' is text; expected a list"),
        (three({**entry("d.jpg"), "sentences": [{}]}), "its sentence 0: 'raw' is missing"),
        (three(entry("../d.jpg")), "image path '../d.jpg' leaves the image root"),
        (three(entry("/etc/d.jpg")), "image path '/etc/d.jpg' leaves the image root"),
        (three(entry("d.jpg", filepath="..")), "leaves the image root"),
        (three(entry("C:\\d.jpg")), "leaves the image root"),
        (three(entry("d.jpg", captions=())), r"split 'train': 1 of 2 images have no caption .*\['d.jpg'\]"),
        (three(entry("d.jpg", "val", (" ",))), "split 'val': 1 of 2 images have no caption or an empty one"),
        (three(entry("a.jpg", "test")), "lists image 'a.jpg' twice, in split 'test' and 'train'"),
        (three(entry("a.jpg")), "lists image 'a.jpg' twice, in split 'train'"),
        (three(entry("d.jpg", cocoid=1), entry("e.jpg", cocoid=1)), "gives id '1' to two images, 'd.jpg' and 'e.jpg'"),
        (three()[:2], r"has no images in split 'test' \(images per split: {'train': 1, 'val': 1, 'test': 0}\)"),
    ],
)
def test_a_karpathy_file_that_is_wrong_is_refused_by_entry(tmp_path, images, message):
    path = karpathy(tmp_path, images)
    with pytest.raises(ValueError, match=message):
        read_splits(path, "x", LISTS)


def test_a_list_is_not_a_karpathy_file(tmp_path):
    (tmp_path / "dataset_x.json").write_text("[]")
    with pytest.raises(ValueError, match=r"is not a Karpathy file: .* found a list"):
        read_karpathy(tmp_path / "dataset_x.json")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"images": []}, "is not one of BLIP's lists: expected a list of entries, found an object"),
        (["x"], "entry 0 is text; expected an object with 'image'"),
        ([{"image": "a.jpg"}], r"entry 0: 'caption' is missing \(keys are \['image'\]\)"),
        ([{"image": "a.jpg", "caption": 3}], "entry 0: 'caption' is the number 3; expected text"),
        ([{"image": "a.jpg", "caption": ["x", None]}], "entry 0: 'caption' is null; expected text"),
        ([{"image": "a.jpg", "caption": ["x"]}] * 2, "entry 1: image 'a.jpg' has a list of captions already"),
        (
            [{"image": "a", "caption": "x", "image_id": i} for i in "pq"],
            "entry 1: image 'a' has image_id 'q', but had 'p'",
        ),
        ([{"image": "a/../../b.jpg", "caption": "x"}], "leaves the image root"),
    ],
)
def test_a_blip_list_that_is_wrong_is_refused_by_entry(tmp_path, rows, message):
    (tmp_path / "t.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=message):
        read_blip(tmp_path / "t.json")


@pytest.mark.parametrize("content", [b'{"images": [', b"\xff\xfe\x00"])
@pytest.mark.parametrize("name", ["dataset_x.json", "dataset_x.json.gz"])
def test_what_is_not_json_is_said_to_be_so(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"is not JSON: .*; download it again"):
        read_splits(tmp_path, "x", LISTS)


def test_missing_files_are_named_with_what_is_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is neither a file nor a directory"):
        read_splits(tmp_path / "nowhere", "x", LISTS)
    (tmp_path / "captions.json").write_text("{}")
    with pytest.raises(
        FileNotFoundError, match=r"looked for \['e.json', 't.json', .*its JSON files are \['captions.json'"
    ):
        read_splits(tmp_path, "x", LISTS)
    blip(tmp_path)
    (tmp_path / "v.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds \['e.json', 't.json'\] but not \['v.json'\]"):
        read_splits(tmp_path, "x", LISTS)
    with pytest.raises(ValueError, match="is the list of one split; annotations takes the directory"):
        read_splits(tmp_path / "t.json", "x", LISTS)
    with pytest.raises(FileNotFoundError, match=r"no file 'zzz.json' in .*; it has \['captions.json', 'e.json'"):
        read_blip(tmp_path / "zzz.json")


@pytest.mark.skipif(not FLICKR8K.is_dir(), reason=f"needs {FLICKR8K}")
def test_both_layouts_of_flickr8k_agree():
    lists = read_splits(FLICKR8K, "flickr8k", Flickr8kRetrieval.lists)
    file = read_splits(FLICKR8K / "dataset_flickr8k.json.gz", "flickr8k", Flickr8kRetrieval.lists)
    assert [len(records) for records in lists.values()] == [6000, 1000, 1000]
    for split, records in lists.items():
        of_lists = {Path(record.image).name: sorted(record.captions) for record in records}
        assert of_lists == {Path(record.image).name: sorted(record.captions) for record in file[split]}
        assert all(len(captions) == 5 for captions in of_lists.values())


def test_every_data_set_names_its_own_files():
    names = [name for kind in (CocoRetrieval, Flickr8kRetrieval, Flickr30kRetrieval) for name in kind.lists.values()]
    assert len(set(names)) == 9
