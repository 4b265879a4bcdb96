import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import tiny
from tests.plans import random_plan
from upop.export.compression import block, numbers, plan_of, ranges
from upop.export.modeling_upop import count
from upop.families import find_sites
from upop.structure import KINDS, Plan

SITE = "encoder.layer.0.attention.self.head"


def made(seed=1):
    sites = find_sites(tiny.build("bert"), KINDS)
    return Plan.of(random_plan(sites, seed).keep, sites, {"removed": 0.5, "of": "params"})


def write(path, compression, **more):
    (path / "config.json").write_text(json.dumps({"model_type": "bert", "compression": compression} | more))


@given(st.sets(st.integers(0, 5000), min_size=1))
def test_ranges_hold_every_number(units):
    text = ranges(sorted(units))
    assert numbers(text) == sorted(units)
    assert count(text) == len(units)
    assert "," not in text or max(units) - min(units) >= len(units)  # neighbours are joined


@pytest.mark.parametrize("text", ["", "-", "1-", "a", "1,,2", "1 2", "-1", "1-2-3", "1" * 5000, "\u0661", 7, None, [1]])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="is no list of numbers and ranges; expected one such as '0-3,7'"):
        numbers(text)


@pytest.mark.parametrize("text", ["3,1", "0-3,3", "5-3", "1,1", "0-999999999", "0-99999999,0-99999999"])
def test_short_texts_do_not_fill_the_memory(text):
    with pytest.raises(ValueError, match=f"'{text}' is not ascending, or goes on to 1048576 and more"):
        numbers(text)


def test_the_plan_comes_back_whole(tmp_path):
    plan = made()
    write(tmp_path, block(plan, KINDS, {"source": "tiny", "metrics": {"mean": 1.5}}))
    assert plan_of(tmp_path) == (plan, list(KINDS))
    assert plan_of(str(tmp_path)) == (plan, list(KINDS))


def test_a_site_of_thousands_is_one_short_text():
    plan = Plan({"a.neuron": tuple(range(3072))}, {"a.neuron": 3072}, "0" * 16)
    assert block(plan, ["neuron"], {})["keep"] == {"a.neuron": "0-3071"}


def test_dense_and_foreign_places_have_no_plan(tmp_path):
    assert plan_of("openai/clip-vit-base-patch32") is None
    assert plan_of(tmp_path) is None
    for text in ("{", "[]", json.dumps({"model_type": "bert"})):
        (tmp_path / "config.json").write_text(text)
        assert plan_of(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda it: it.update(format=1), r"config\.json' has compression format 1; this version reads format 2"),
        (lambda it: it.pop("format"), "has compression format None; this version reads format 2"),
        (lambda it: it.pop("units"), r"compression in '.*' lacks \['units'\]; is it complete"),
        (
            lambda it: it.update(kinds=7),
            r"'kinds' of the compression in '.*config\.json' is 7; expected some of",
        ),
        (
            lambda it: it.update(search=[1]),
            r"compression in '.*json': 'facts', 'units' and 'keep' of a plan",
        ),
        (lambda it: it["units"].pop(SITE), f"'units' of a plan has no whole number for site '{SITE}'"),
        (lambda it: it.update(keep=[]), "'units' and 'keep' of the compression in '.*' are mappings from site names"),
        (lambda it: it["keep"].update({SITE: "1;2"}), f"units kept at site '{SITE}' in '.*': '1;2' is no list"),
    ],
)
def test_what_is_no_plan_is_refused(tmp_path, change, text):
    content = block(made(), KINDS, {})
    change(content)
    write(tmp_path, content)
    with pytest.raises(ValueError, match=text):
        plan_of(tmp_path)


def test_a_compression_that_is_no_mapping(tmp_path):
    write(tmp_path, ["head"])
    with pytest.raises(ValueError, match="has compression format 'list'; this version reads format 2"):
        plan_of(tmp_path)


def test_there_is_one_plan(tmp_path):
    plan = made()
    write(tmp_path, block(plan, KINDS, {}))
    (tmp_path / "compression.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a plan in config\.json and another in compression\.json; delete the one"):
        plan_of(tmp_path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", r"compression\.json' is not JSON: "),
        ("[]", r"compression\.json' has format 'list'; this version reads format 1"),
        ('{"format": 2}', r"compression\.json' has format 2; this version reads format 1"),
        ('{"format": 1, "plan": {}}', r"compression\.json' lacks \['kinds'\]; is it complete"),
        ('{"format": 1, "plan": {"format": 7}, "kinds": []}', "plan format 7; this version reads format 1"),
    ],
)
def test_older_files_that_cannot_be_read(tmp_path, content, text):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "compression.json").write_text(content)
    with pytest.raises(ValueError, match=text):
        plan_of(tmp_path)
