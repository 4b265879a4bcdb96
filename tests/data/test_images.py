"""Images are found where they are, counted where they are not, and never replaced by black ones."""

import os
import re

import numpy as np
import pytest
from PIL import Image

from upop.data.annotations import Record
from upop.data.images import (
    FileImages,
    ImageFolder,
    Listing,
    check_cache,
    decoded_bytes,
    locate,
    locate_paths,
    search_paths,
    verify,
)


def picture(path, size=(8, 6), mode="RGB", colour=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour if mode in "LP" else (colour,) * len(mode)).save(path)
    return path


def splits(*images):
    return {"train": [Record(image, ("a",), image) for image in images], "val": [], "test": []}


@pytest.mark.parametrize(
    ("written", "there"),
    [
        ("a.jpg", "a.jpg"),
        ("a.jpg", "images/a.jpg"),
        ("val2014/a.jpg", "images/val2014/a.jpg"),
        ("val2014/a.jpg", "val2014/a.jpg"),
        ("images/a.jpg", "a.jpg"),
        ("val2014/a.jpg", "images/a.jpg"),
    ],
)
def test_images_are_found_with_a_folder_more_or_less(tmp_path, written, there):
    picture(tmp_path / there)
    assert [record.image for record in locate(splits(written), tmp_path, ("", "images"))["train"]] == [there]


def test_one_layout_is_taken_for_all_images(tmp_path):
    for name in ("images/a.jpg", "images/b.jpg", "a.jpg", "b.jpg"):
        picture(tmp_path / name)
    assert [record.image for record in locate(splits("a.jpg", "b.jpg"), tmp_path, ("", "images"))["train"]] == [
        "a.jpg",
        "b.jpg",
    ]


def test_equal_names_in_different_folders_stay_apart(tmp_path):
    for name in ("x/a.jpg", "y/a.jpg"):
        picture(tmp_path / name)
    assert [record.image for record in locate(splits("x/a.jpg", "y/a.jpg"), tmp_path, ("", "images"))["train"]] == [
        "x/a.jpg",
        "y/a.jpg",
    ]


def test_missing_images_are_counted_and_named(tmp_path):
    picture(tmp_path / "images/a.jpg")
    wanted = splits("a.jpg", *(f"{n}.jpg" for n in range(5)))
    with pytest.raises(
        FileNotFoundError, match=r"5 of 6 images are missing under .*\['images/0.jpg', 'images/1.jpg', 'images/2.jpg'\]"
    ):
        locate(wanted, tmp_path, ("", "images"))
    with pytest.raises(FileNotFoundError, match="no image directory at"):
        locate(wanted, tmp_path / "nowhere", ("",))


def test_each_directory_is_listed_once(tmp_path, monkeypatch):
    picture(tmp_path / "images/a.jpg")
    listing, calls, scandir = Listing(tmp_path), [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: calls.append(path) or scandir(path))
    assert "images/a.jpg" in listing
    assert "images/b.jpg" not in listing
    assert "nowhere/b.jpg" not in listing
    assert len(calls) == 2


def test_folders_may_be_links_and_files_may_not_lead_elsewhere(tmp_path):
    disk, root = tmp_path / "disk", tmp_path / "data" / "coco"
    picture(disk / "train2014" / "a.jpg")
    picture(tmp_path / "secret.jpg")
    root.parent.mkdir()
    root.symlink_to(disk)  # the data set is on another disk
    (tmp_path / "val2014").mkdir()
    (disk / "val2014").symlink_to(tmp_path / "val2014")  # and a part of it on a third
    picture(tmp_path / "val2014" / "b.jpg")
    (tmp_path / "val2014" / "c.jpg").symlink_to("b.jpg")
    (disk / "d.jpg").symlink_to("train2014/a.jpg")
    inside = ["train2014/a.jpg", "val2014/b.jpg", "val2014/c.jpg", "d.jpg"]
    assert locate_paths(inside, root, ("",)) == inside
    (disk / "e.jpg").symlink_to("../secret.jpg")
    secret = re.escape(f"'{tmp_path / 'secret.jpg'}'")
    text = (
        rf"image 'images/e\.jpg' of the annotations is '.*coco/e\.jpg', a link that leaves the image root for {secret};"
    )
    with pytest.raises(ValueError, match=text):
        locate_paths([*(name.rpartition("/")[2] for name in inside), "images/e.jpg"], root, ("", "train2014"))
    (disk / "f.jpg").symlink_to("f.jpg")  # leads nowhere; found, and told when it is decoded
    assert locate_paths(["f.jpg"], root, ("",)) == ["f.jpg"]
    with pytest.raises(ValueError, match=r"image '.*f\.jpg' cannot be decoded: .*symbolic links"):
        verify(["f.jpg"], root)


def test_names_that_no_disk_takes_are_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="2 of 2 images are missing"):
        locate_paths(["a" * 300 + "/b.jpg", "b" * 300], tmp_path, ("",))


def test_verify_names_what_is_broken(tmp_path):
    paths = [picture(tmp_path / f"{n}.png").name for n in range(3)]
    verify(paths, tmp_path)
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"1 of 3 images are broken: image '.*1\.png' cannot be decoded"):
        verify(paths, tmp_path)


def test_the_cache_gives_the_same_pixels_without_the_file_and_has_a_limit(tmp_path, monkeypatch):
    paths = [picture(tmp_path / f"{n}.png", colour=n).name for n in range(100)]
    folder = ImageFolder(tmp_path)
    read = np.asarray(folder.load("7.png"))
    folder.keep(paths)
    (tmp_path / "7.png").unlink()
    assert (np.asarray(folder.load("7.png")) == read).all()
    picture(tmp_path / "7.png")
    assert decoded_bytes(paths, tmp_path) == 100 * 8 * 6 * 3
    check_cache(paths, tmp_path)
    monkeypatch.setattr("upop.data.images.CACHE_LIMIT", 100)
    with pytest.raises(ValueError, match=r"cache_images would keep about 0\.0 GiB .*Set cache_images to false"):
        check_cache(paths, tmp_path)


def test_a_data_set_in_several_folders_is_found_image_by_image(tmp_path):
    for path in ("one/a.jpg", "two/a.jpg", "two/b.jpg", "one/c.jpg"):
        picture(tmp_path / path)
    folders, images = ("", "one", "two"), ["a.jpg", "b.jpg", "c.jpg"]
    assert locate_paths(images, tmp_path, folders, mixed=True) == ["one/a.jpg", "two/b.jpg", "one/c.jpg"]
    with pytest.raises(
        FileNotFoundError, match=r"1 of 3 images are missing under .*\['one/b\.jpg'\]; also tried 'one'"
    ):
        locate_paths(images, tmp_path, folders)
    with pytest.raises(FileNotFoundError, match=r"1 of 1 images are missing under .*\['d\.jpg'\]"):
        locate_paths(["d.jpg"], tmp_path, folders, mixed=True)


def test_what_is_missing_can_be_asked_for(tmp_path):
    picture(tmp_path / "a.jpg")
    assert search_paths(["a.jpg", "b.jpg"], tmp_path, ("",)) == (["a.jpg", "b.jpg"], ["b.jpg"])
    with pytest.raises(FileNotFoundError, match="no image directory at"):
        search_paths(["a.jpg"], tmp_path / "nowhere", ("",))


@pytest.mark.parametrize("keep", [True, False])
def test_file_images_are_loaded_by_number_and_kept_on_request(tmp_path, keep):
    for name, colour in (("a.png", 10), ("b.png", 20)):
        picture(tmp_path / name, colour=colour)
    images = FileImages(["a.png", "b.png", "a.png"], ImageFolder(tmp_path), keep)
    images.prepare(None)
    (tmp_path / "a.png").unlink()
    assert images.load(1).getpixel((0, 0)) == (20, 20, 20)
    if keep:
        assert images.load(2).getpixel((0, 0)) == (10, 10, 10)
    else:
        with pytest.raises(FileNotFoundError, match="no image at"):
            images.load(2)
