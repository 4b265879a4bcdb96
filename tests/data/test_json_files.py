"""JSON is read plain and gzipped, and what is wrong with it is said with its place."""

import gzip
import json
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upop.data.json_files import contents, find_file, inside, kind, read_json, read_json_lines, text, whole

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_values_come_back(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("json")
    (folder / "a.json").write_text(json.dumps(value))
    (folder / "a.json.gz").write_bytes(gzip.compress(json.dumps(value).encode()))
    assert read_json(folder / "a.json") == read_json(folder / "a.json.gz") == value


@given(st.lists(st.dictionaries(st.text(), st.integers())))
def test_lines_come_back(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("json") / "a.jsonl"
    path.write_text("\n\n".join(map(json.dumps, values)) + "\n")
    assert read_json_lines(path) == values


def test_a_hook_takes_the_place_of_objects(tmp_path):
    (tmp_path / "a.json").write_text('[{"a": 1}, {"b": 2}]')
    assert read_json(tmp_path / "a.json", lambda entry: sum(entry.values())) == [1, 2]


def test_what_is_no_json_is_said_to_be_so(tmp_path):
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text('{"a": 1}\noops\n')
    (tmp_path / "c.json.gz").write_bytes(b"no gzip")
    (tmp_path / "d.json").write_text("[" * 100_000)
    (tmp_path / "e.json.gz").write_bytes(gzip.compress(b"[1, 2]" * 100)[:-12])
    for name in ("a.json", "c.json.gz", "d.json", "e.json.gz"):
        with pytest.raises(ValueError, match=rf"{name}' is not JSON: .*; download it again"):
            read_json(tmp_path / name)
    with pytest.raises(ValueError, match=r"b\.json', line 2 is not JSON: .*; expected one object a line"):
        read_json_lines(tmp_path / "b.json")
    with pytest.raises(FileNotFoundError, match=r"no file 'z\.json' in .*; it has \['a\.json', 'b\.json', "):
        read_json(tmp_path / "z.json")


def test_files_are_found_plain_before_gzipped(tmp_path):
    assert find_file(tmp_path, "a.json") is None
    (tmp_path / "a.json.gz").write_bytes(b"")
    assert find_file(tmp_path, "a.json") == tmp_path / "a.json.gz"
    (tmp_path / "a.json").write_bytes(b"")
    assert find_file(tmp_path, "a.json") == tmp_path / "a.json"


def test_fields_are_of_their_type():
    entry = {"a": "x", "n": 3, "t": True}
    assert (text(entry, "a", "here"), whole(entry, "n", "here")) == ("x", 3)
    with pytest.raises(ValueError, match=r"here: 'b' is missing \(keys are \['a', 'n', 't'\]\); expected text"):
        text(entry, "b", "here")
    with pytest.raises(ValueError, match="here: 'a' is text; expected a whole number"):
        whole(entry, "a", "here")
    with pytest.raises(ValueError, match="here: 't' is a truth value; expected a whole number"):
        whole(entry, "t", "here")
    with pytest.raises(ValueError, match="here is a list; expected an object with 'a'"):
        text([], "a", "here")
    with pytest.raises(ValueError, match=r"here: 'a' has half a character, '\\ud800', at place 2; mend it or remove"):
        text({"a": "\u00e4b\ud800"}, "a", "here")
    assert text({"a": "\U0001f600"}, "a", "here") == "\U0001f600"
    assert whole({"n": -(2**63)}, "n", "here") == -(2**63)
    with pytest.raises(ValueError, match="here: 'n' has 401 digits; expected a whole number of 64 bits"):
        whole({"n": 10**400}, "n", "here")


def test_a_gzip_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("upop.data.json_files.LARGEST", 1024)
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b"[" + b" " * 10_000 + b"]"))
    with pytest.raises(ValueError, match=r"a\.json\.gz' unpacks to more than .* GiB; unpack it if you trust it"):
        read_json(tmp_path / "a.json.gz")


def test_paths_stay_inside():
    assert inside("a\\b/c.jpg", "here") == "a/b/c.jpg"
    for path in (
        "../a.jpg",
        "/a.jpg",
        "C:/a.jpg",
        "",
        "a/../../b.jpg",
        "..\\a.jpg",
        "\\\\host\\a.jpg",
        "a\0.jpg",
        ".",
        "/",
    ):
        with pytest.raises(ValueError, match="here: image path .* leaves the image root"):
            inside(path, "here")
    with pytest.raises(ValueError, match="here: 'image' has half a character"):
        inside("\udcff.jpg", "here")


@given(st.text("ab.-_/\\: ", max_size=12))
def test_paths_known_at_a_glance_are_those_that_pathlib_finds_inside(image):
    path = PurePosixPath(image.replace("\\", "/"))
    leaves = path.is_absolute() or ".." in path.parts or not path.name or ":" in path.parts[0]
    try:
        assert inside(image, "here") == str(path)
        assert not leaves
    except ValueError:
        assert leaves


def test_values_are_called_by_their_kind():
    assert [kind(value) for value in ({}, [], "", True, None, 1.5)] == [
        "an object", "a list", "text", "a truth value", "null", "the number 1.5",
    ]  # fmt: skip
    assert contents({"b": 1, "a": 2}) == "an object with keys ['a', 'b']"
