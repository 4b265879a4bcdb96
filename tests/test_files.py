import errno
import json
import os
import stat
from pathlib import Path

import pytest

from upop.files import (
    DiskFullError,
    free_bytes,
    is_full_disk,
    whole_directory,
    write_atomic,
    write_json,
    write_text,
)


class Power(BaseException):
    """Goes off in the middle."""


@pytest.mark.parametrize("error", [Power, KeyboardInterrupt, OSError])
def test_a_crash_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "facts.json"
    write_text(path, "old")

    def half(temporary: Path):
        temporary.write_text("ne")
        assert path.read_text() == "old"
        raise error

    with pytest.raises(error):
        write_atomic(path, half)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["facts.json"]


def test_a_crash_on_a_new_file_leaves_none(tmp_path):
    with pytest.raises(TypeError):
        write_atomic(tmp_path / "new.txt", lambda temporary: temporary.write_text(None))
    assert os.listdir(tmp_path) == []


def test_a_crash_between_writing_and_renaming(tmp_path, monkeypatch):
    path = tmp_path / "facts.json"
    write_text(path, "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(Power))
    with pytest.raises(Power):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["facts.json"]


def test_the_writer_gets_a_name_beside_with_the_same_suffix(tmp_path):
    names = []

    def note(temporary):
        names.append(temporary)
        temporary.write_text("x")

    write_atomic(tmp_path / "a" / "b" / "plot.png", note)
    assert names[0].parent == tmp_path / "a" / "b"
    assert names[0].suffix == ".png"
    assert os.listdir(tmp_path / "a" / "b") == ["plot.png"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_honour_the_umask(tmp_path, umask):
    old = os.umask(umask)
    try:
        write_text(tmp_path / "new.txt", "x")
        again = os.umask(umask)
    finally:
        os.umask(old)
    assert again == umask
    assert stat.S_IMODE((tmp_path / "new.txt").stat().st_mode) == 0o666 & ~umask


def test_the_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda *names: (calls.append("replace"), replace(*names)))
    write_text(tmp_path / "x.txt", "x")
    assert calls == ["fsync", "replace", "fsync"]


def test_json_is_indented_and_a_list_of_plain_values_is_one_line(tmp_path):
    data = {"format": 1, "nested": {"a": [1, 2]}, "keep": {"one": [0, 1, 2], 'wi"th': []}, "rows": [{"b": None}, [3]]}
    write_json(tmp_path / "x.json", data)
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == data
    assert '    "one": [0, 1, 2],\n    "wi\\"th": []\n  }' in text
    assert '  "nested": {\n    "a": [1, 2]\n  },' in text
    assert '  "rows": [\n    {\n      "b": null\n    },\n    [3]\n  ]\n}\n' in text


def test_empty_json(tmp_path):
    write_json(tmp_path / "x.json", {})
    assert json.loads((tmp_path / "x.json").read_text()) == {}


@pytest.mark.parametrize("error", [Power, OSError])
def test_a_directory_that_could_not_be_filled_leaves_the_old_one(tmp_path, error):
    place = tmp_path / "deep" / "out"
    with whole_directory(place) as temporary:
        (temporary / "a").write_text("old")
        assert not place.exists()

    def fill_half():
        with whole_directory(place) as temporary:
            (temporary / "a").write_text("ne")
            raise error

    with pytest.raises(error):
        fill_half()
    assert [(file.name, file.read_text()) for file in place.iterdir()] == [("a", "old")]
    assert os.listdir(place.parent) == ["out"]


def test_a_directory_takes_the_place_of_the_whole_old_one(tmp_path):
    for name in ("a", "b"):
        with whole_directory(tmp_path / "out") as temporary:
            (temporary / name).write_text(name)
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["b"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777 & ~umask


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_told_with_the_file_and_what_to_do(tmp_path, error):
    def no_room(temporary: Path):
        temporary.write_text("ne")
        raise error

    with pytest.raises(
        DiskFullError, match=r"^no room for '.*new\.txt': \d.* [GM]B are free on its disk; free some, or"
    ):
        write_atomic(tmp_path / "new.txt", no_room)
    write_text(tmp_path / "facts.json", "old")
    with pytest.raises(DiskFullError, match="on its disk; the facts.json of before is whole; free some, or go on in"):
        write_atomic(tmp_path / "facts.json", no_room)
    assert os.listdir(tmp_path) == ["facts.json"]

    def fill_half():
        with whole_directory(tmp_path / "out") as temporary:
            (temporary / "a").write_text("ne")
            raise error

    with pytest.raises(DiskFullError, match="^no room for '.*out': "):
        fill_half()
    assert os.listdir(tmp_path) == ["facts.json"]


def test_the_cause_of_an_error_counts_and_other_errors_stay(tmp_path):
    def wrapped():
        try:
            raise OSError(errno.ENOSPC, "full")
        except OSError as error:
            raise RuntimeError("unexpected pos 576 vs 534") from error

    with pytest.raises(RuntimeError) as found:
        wrapped()
    assert is_full_disk(found.value)
    assert not is_full_disk(OSError(errno.EIO, "broken"))
    with pytest.raises(PermissionError):
        write_atomic(tmp_path / "x", lambda _: (_ for _ in ()).throw(PermissionError("no")))


def test_the_room_of_a_path_that_is_not_there_is_that_of_its_disk(tmp_path):
    assert free_bytes(tmp_path / "a" / "b") == pytest.approx(free_bytes(tmp_path), rel=0.1)
