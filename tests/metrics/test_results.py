import json
import re

import pytest

from upop.metrics.results import check_complete, check_writable, write_rows


def test_every_item_once_is_fine():
    check_complete({1: "a", 2: "b"}, iter([2, 1]), "image")
    check_complete(["x"], {"x": ["a caption"]}, "image")


@pytest.mark.parametrize(
    ("found", "expected", "message"),
    [
        ({}, [], "no image was given; give at least 1"),
        ({1, 2}, [1, 2, 1], "image 1 is listed twice; give each image an id of its own"),
        ({2}, [1, 2, 3], "2 of 3 images have no result, the first ones [1, 3]; give one for every image"),
        ({1, 2, "y"}, [1, 2], "there is a result for image 'y', which is none of the 2 images"),
    ],
)
def test_anything_else_is_refused(found, expected, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_complete(found, expected, "image")


def test_rows_are_a_json_list_with_one_on_each_line(tmp_path):
    rows = [{"image_id": 1, "caption": 'a "café"'}, {"image_id": 2, "caption": ""}]
    write_rows(tmp_path / "new" / "rows.json", rows)
    text = (tmp_path / "new" / "rows.json").read_text()
    assert json.loads(text) == rows
    assert [json.loads(line.rstrip(",")) for line in text.splitlines()[1:-1]] == rows
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["rows.json"]


def test_a_result_file_that_cannot_be_written_is_refused_before_there_are_results(tmp_path):
    check_writable(None)
    check_writable(tmp_path / "new" / "deep" / "results.json")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match=r"result_file is '.*', which is a directory; give a file in it"):
        check_writable(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match=r"result_file is '.*results\.json', but '.*file' is no directory; give another"
    ):
        check_writable(tmp_path / "file" / "results.json")
