import math
import re

import pytest

from upop.report import charts
from upop.report.facts import Run, Unfinished
from upop.report.markup import to_html

from .reading import read
from .samples import so_far, summary

WHY = Unfinished({"search": "next"}, "upop fit --config x.yaml")


def run(**changes):
    return Run.of(summary(**changes), "x")


def one(made):
    """Title, description, texts and the svg of a chart."""
    (svg,) = read(to_html(made)).all("svg")
    return svg.all("title")[0].text, svg.all("desc")[0].text, [node.text for node in svg.all("text")], svg


def bars(svg, colour):
    """Widths of the rectangles of a colour, from the top."""
    found = [
        node.attributes for node in svg.all("path") if f"fill: var(--{colour})" in node.attributes.get("style", "")
    ]
    corners = [[float(number) for number in re.findall(r"-?[\d.]+", path["d"])] for path in found]
    return [width for _, width in sorted((min(each[1::2]), max(each[::2]) - min(each[::2])) for each in corners)]


def test_a_bar_is_the_share_of_units_kept():
    sites = [site for site in run(layers=4).sites if site.kind == "neuron" and site.modality == "vision"]
    title, description, texts, svg = one(charts.kept("a", "the part", sites))
    assert title == "the part"
    assert (
        description
        == "Units kept of those there were. "
        + "; ".join(f"layer {depth}: {256 - depth} / 512" for depth in range(4))
        + "."
    )
    assert [text for text in texts if "/" in text] == [f"{256 - depth} / 512" for depth in range(4)]
    drawn, outline = bars(svg, "vision"), bars(svg, "grid")
    assert len(drawn) == len(outline) == 4
    shares = [part / whole for part, whole in zip(drawn, outline, strict=True)]
    assert shares == pytest.approx([(256 - depth) / 512 for depth in range(4)], abs=1e-3)


@pytest.mark.parametrize("layers", [1, 48])
def test_bars_stay_apart_in_deep_towers(layers):
    sites = [site for site in run(layers=layers, removed=0.1).sites if site.kind == "neuron"][:layers]
    svg = one(charts.kept("a", "x", sites))[-1]
    height = float(svg.attributes["viewbox"].split()[-1])
    assert height / layers > 12, "points a layer"


def test_towers_are_told_apart_by_part_kind_and_role():
    drawn = charts.towers("a", run().sites)
    assert {tower: [one(chart)[0] for chart in made] for tower, made in drawn.items()} == {
        "vision": [
            "vision: attention head-dim positions (vision_model, self_attn)",
            "vision: MLP neurons (vision_model, mlp)",
        ],
        "text": [
            "text: attention head-dim positions (text_decoder, attention.self)",
            "text: MLP neurons (text_decoder, intermediate)",
        ],
        "fusion": ["fusion: attention head-dim positions (text_decoder, crossattention.self)"],
    }


def test_the_search_shows_removal_split_loss_and_returns():
    titles = [one(chart)[0] for chart in charts.search("a", run())]
    assert titles == [
        "removed over the search",
        "parameters removed from each tower",
        "task loss",
        "units returned per update",
    ]
    removed, split, loss, returned = (one(chart) for chart in charts.search("a", run()))
    assert removed[1] == (
        "removed, % over 16 optimizer steps: parameters from 12.5 to 50, FLOPs from 12.5 to 50, target 50."
    )
    assert split[1].count("from 12.5 to 50") == 3
    assert {"vision", "text", "fusion"} <= set(split[2])
    assert "loss from 3 to 2.25" in loss[1]
    assert returned[1].startswith("4 updates gave 60 units back")


def test_a_search_with_gaps():
    told = summary()
    for row in told["search"]["history"]:
        del row["loss"]
        row["removed/params/text"] = math.nan
    titles = {one(chart)[0]: one(chart)[2] for chart in charts.search("a", Run.of(told, "x"))}
    assert "task loss" not in titles
    assert "text" not in titles["parameters removed from each tower"]
    told["search"]["history"] = []
    assert charts.search("a", Run.of(told, "x")) == []
    told["search"]["history"] = [{"step": 4.0, "units_returned": 0.0}]
    assert len(charts.search("a", Run.of(told, "x"))) == 1


def test_a_search_over_flops_is_split_in_flops():
    told = summary()
    told["search"]["facts"]["of"] = "flops"
    for row in told["search"]["history"]:
        row["removed/flops/vision"] = 0.25
    titles = [one(chart)[0] for chart in charts.search("a", Run.of(told, "x"))]
    assert titles[1] == "FLOPs removed from each tower"


def test_metrics_of_every_state():
    title, description, texts, svg = one(charts.metrics("a", run(metrics=("mean", "psnr"))))
    assert title == "metrics of each state"
    assert description == (
        "mean of the recalls: dense 20.00, cut 9.75, retrained 14.88; psnr: dense 40.00, cut 29.75, retrained 34.88."
    )
    assert {"dense", "cut", "retrained", "mean of the recalls", "psnr"} <= set(texts)
    assert len([node for node in svg.all("use") if "--vision" in node.attributes.get("style", "")]) == 3  # and the key


def test_a_run_that_is_not_finished_shows_what_changed_so_far():
    _, description, texts, svg = one(charts.metrics("a", Run.of(so_far("dense", "cut", metrics=("psnr",)), "x", WHY)))
    assert description == "psnr: dense 20.00, cut 9.75."
    assert {"dense", "cut"} <= set(texts)
    assert "retrained" not in texts
    assert not [node for node in svg.all("use") if "--vision" in node.attributes.get("style", "")]
    assert charts.metrics("a", Run.of(so_far("dense"), "x", WHY)) is None
    assert charts.metrics("a", Run.of(so_far(), "x", WHY)) is None


def test_a_search_without_a_known_target_has_no_line_for_it():
    told = so_far("dense")
    told["search"]["target"] = None
    _, description, texts, _ = one(charts.search("a", Run.of(told, "x", WHY))[0])
    assert description.endswith("FLOPs from 12.5 to 50.")
    assert not [text for text in texts if "target" in text]


def test_a_metric_of_the_last_state_alone():
    told = summary(metrics=("psnr",))
    del told["states"]["dense"]["psnr"]
    assert "dense -" in one(charts.metrics("a", Run.of(told, "x")))[1]
    assert charts.metrics("a", run(metrics=())) is None
