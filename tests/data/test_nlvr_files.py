"""Statements are read from all layouts, and whatever a file gets wrong is named."""

import json

import pytest

from tests.data.statement_pictures import lines, statement
from upop.data.nlvr_files import read_blip_pairs, read_nlvr, read_nlvr2


def test_official_identifiers_lead_to_images_and_groups(tmp_path):
    rows = [statement("dev", 850, 2, 1), statement("train", 7, 0, 0, directory=3), statement("dev", 850, 3, 1)]
    one, other, third = read_nlvr2(lines(tmp_path / "dev.json", rows))
    assert one.images == ("dev/dev-850-2-img0.png", "dev/dev-850-2-img1.png")
    assert other.images == ("train/3/train-7-0-img0.png", "train/3/train-7-0-img1.png")
    assert (one.pair.identifier, one.pair.label, other.pair.label) == ("dev-850-2-1", False, True)
    assert one.pair.group == third.pair.group != other.pair.group


def official_group(identifier):
    """How the authors' nlvr2/eval/metrics.py finds the sentences that belong together."""
    parts = identifier.split("-")
    parts[2] = ""
    return "-".join(parts)


def test_groups_are_the_authors(tmp_path):
    rows = [statement("test1", group, pair, said) for group in range(3) for pair in range(4) for said in range(2)]
    for found in read_nlvr2(lines(tmp_path / "test1.json", rows)):
        assert found.pair.group == official_group(found.pair.identifier)


def test_blip_lists_group_alike(tmp_path):
    rows = [statement("dev", group, pair, said) for group in range(2) for pair in range(2) for said in range(2)]
    official = read_nlvr2(lines(tmp_path / "dev.json", rows))
    listed = [
        {
            "sentence": one.pair.sentence,
            "label": str(one.pair.label),
            "images": [f"images/{path}" for path in one.images],
        }
        for one in official
    ]
    (tmp_path / "nlvr_dev.json").write_text(json.dumps(listed))
    found = read_blip_pairs(tmp_path / "nlvr_dev.json")
    assert [one.images for one in found] == [one.images for one in official]
    assert [(one.pair.sentence, one.pair.label) for one in found] == [
        (one.pair.sentence, one.pair.label) for one in official
    ]
    assert len({one.pair.identifier for one in found}) == len(found)
    same = [[one.pair.group == other.pair.group for other in found] for one in found]
    assert same == [[one.pair.group == other.pair.group for other in official] for one in official]


def test_nlvr_v1_has_one_picture_a_statement(tmp_path):
    rows = [
        {"identifier": "72-0", "label": "true", "sentence": "x"},
        {"identifier": "72-1", "label": False, "sentence": "x"},
    ]
    one, other = read_nlvr(lines(tmp_path / "dev.json", rows), "dev")
    assert one.images == ("dev-72-0-0.png",)
    assert (one.pair.identifier, one.pair.group, one.pair.label) == ("dev-72-0", "dev-72", True)
    assert (other.pair.group, other.pair.label) == ("dev-72", False)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"identifier": "72-0"}, r"'identifier' is '72-0'; expected split-set-pair-sentence, .* is upop\.data\.Nlvr"),
        ({"identifier": None}, "entry 1: 'identifier' is null; expected text"),
        ({"label": "maybe"}, "entry 1: 'label' is 'maybe'; expected 'True' or 'False'"),
        ({"label": None}, "entry 1: 'label' is null; expected 'True' or 'False'"),
        ({"sentence": 3}, "entry 1: 'sentence' is the number 3; expected text"),
        ({"directory": "../.."}, "leaves the image root"),
        ({"identifier": "dev-0-0-0"}, r"has 1 identifiers more than once, the first of them \['dev-0-0-0'\]; keep one"),
    ],
)
def test_an_nlvr2_that_is_wrong_is_refused(tmp_path, row, message):
    path = lines(tmp_path / "dev.json", [statement("dev", 0, 0, 0), {**statement("dev", 1, 0, 0), **row}])
    with pytest.raises(ValueError, match=message):
        read_nlvr2(path)


def test_files_of_another_kind_are_refused(tmp_path):
    empty, other = lines(tmp_path / "empty.json", []), lines(tmp_path / "other.json", ["x"])
    pretty = tmp_path / "pretty.json"
    pretty.write_text(json.dumps([statement("dev", 0, 0, 0)], indent=1))
    for read in (read_nlvr2, lambda path: read_nlvr(path, "dev")):
        with pytest.raises(ValueError, match=r"empty\.json' has no statements; download it again"):
            read(empty)
        with pytest.raises(ValueError, match="entry 0 is text; expected an object with 'identifier'"):
            read(other)
        with pytest.raises(ValueError, match=r"pretty\.json', line 1 is not JSON: .*; expected one object a line"):
            read(pretty)
    with pytest.raises(ValueError, match=r"'identifier' is 'dev-0-0-0'; expected two numbers, .* is upop\.data\.Nlvr2"):
        read_nlvr(lines(tmp_path / "dev.json", [statement("dev", 0, 0, 0)]), "dev")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"a": 1}, "is not one of BLIP's lists: expected a list of entries, found an object"),
        ([], "has no statements; download it again"),
        ([{"sentence": "x", "label": "True", "images": ["a.png"]}], "'images' is a list of 1; expected a list of two"),
        (
            [{"sentence": "x", "label": "True", "images": "a.png"}],
            "'images' is text; expected a list of two image paths",
        ),
        ([{"sentence": "x", "label": "True", "images": ["a.png", 3]}], "'images' is the number 3; expected text"),
        ([{"sentence": "x", "label": "True", "images": ["a.png", "/b.png"]}], "leaves the image root"),
        ([{"label": "True", "images": []}], "entry 0: 'sentence' is missing"),
    ],
)
def test_blip_lists_that_are_wrong_are_refused(tmp_path, rows, message):
    (tmp_path / "nlvr_dev.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=message):
        read_blip_pairs(tmp_path / "nlvr_dev.json")
