import re

import pytest

from upop.report.curve import curve, lines
from upop.report.facts import Run, Unfinished
from upop.report.markup import to_html

from .reading import read
from .samples import so_far, summary


def run(name, **changes):
    return Run.of(summary(**changes), name)


RUNS = [
    run("half", removed=0.5),
    run("half again", removed=0.5, seed=2),
    run("three quarters", removed=0.75),
    run("another", removed=0.5, policy="taylor"),
    run("questions", task="Questions", metrics=("accuracy",)),
]


def svg(made):
    (found,) = read(to_html(made)).all("svg")
    return found


def test_a_curve_is_of_one_task_model_and_policy():
    assert {name: [number for number, _ in members] for name, members in lines(RUNS, "mean").items()} == {
        "Retrieval on Shapes, 2.58 M dense, unified, unified": [1, 2, 3],
        "Retrieval on Shapes, 2.58 M dense, taylor, unified": [4],
    }
    assert list(lines(RUNS, "accuracy")) == ["Questions on Shapes, 2.58 M dense, unified, unified"]
    assert lines(RUNS, "nothing") == {}


def test_a_run_that_is_not_finished_is_on_no_curve():
    told = so_far("dense", "cut", "retrained")  # all is measured but the summary is missing
    begun = Run.of(told, "begun", Unfinished({"summary": "next"}, "upop fit"))
    found = lines([begun, *RUNS], "mean")
    assert [number for members in found.values() for number, _ in members] == [2, 3, 4, 5]
    assert "begun" not in svg(curve("a", [begun, *RUNS], "mean")).all("desc")[0].text


def test_it_tells_every_run_in_words():
    found = svg(curve("a", RUNS, "mean"))
    assert found.all("title")[0].text == "mean of the recalls against parameters"
    description = found.all("desc")[0].text
    assert "half: 34.88 at 1.42 M, dense 40.00 at 2.58 M" in description
    assert "three quarters: 34.88 at 839.0 K" in description
    assert "questions" not in description
    texts = [node.text for node in found.all("text")]
    assert {"1", "2", "3", "4"} <= set(texts)
    assert "5" not in texts


def points(found, colour):
    """Points of the line of a colour; the longest, as the others are in the key."""
    paths = [
        node.attributes["d"]
        for node in found.all("path")
        if f"stroke: var(--{colour})" in node.attributes.get("style", "") and "none" in node.attributes["style"]
    ]
    lines = [[float(number) for number in re.findall(r"-?[\d.]+", path)] for path in paths if "C" not in path]
    longest = max(lines, key=len)
    return list(zip(longest[::2], longest[1::2], strict=True))


def test_a_line_goes_through_the_mean_of_each_target_to_the_dense_model():
    low, high = summary(removed=0.5), summary(removed=0.5)
    low["states"]["retrained"]["mean"], high["states"]["retrained"]["mean"] = 10.0, 20.0
    quarter = summary(removed=0.75)
    quarter["states"]["retrained"]["mean"] = 15.0
    found = points(svg(curve("a", [Run.of(told, str(told)[-9:]) for told in (low, high, quarter)], "mean")), "series-1")
    assert len(found) == 3
    (_, smallest), (_, middle), (_, dense) = sorted(found)
    assert smallest == pytest.approx(middle), "the mean of 10 and 20 is the 15 of the other"
    assert dense < middle, "upwards in a picture"


def test_sizes_far_apart_stand_on_a_logarithmic_axis():
    told = summary(removed=0.5)
    for state in told["states"].values():
        state["params"] *= 100
    large = Run.of(told, "large")
    texts = [node.text for node in svg(curve("a", [RUNS[0], large], "mean")).all("text")]
    assert "10 M" in texts
    assert "0" not in texts


def test_flops_are_sizes_too():
    assert svg(curve("a", RUNS, "mean", "flops")).all("title")[0].text == "mean of the recalls against FLOPs"


def test_a_dense_model_that_was_not_measured():
    told = summary()
    del told["states"]["dense"]["mean"]
    found = svg(curve("a", [Run.of(told, "x")], "mean"))
    assert "dense - at 2.58 M" in found.all("desc")[0].text.replace("\u00a0", " ")
