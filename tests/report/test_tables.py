import re
from dataclasses import replace

import pytest

from upop.cost import Share
from upop.report import SitesRow, comparison, human, removed_table, render, sites_table
from upop.report.tables import latency_table

DENSE = {"params": 149_620_737, "flops": 14_800_000_000, "latency_ms": 20.0, "samples_per_s": 100.0, "i2t_r1": 71.5}
CUT = {"params": 74_810_369, "flops": 7_400_000_000, "latency_ms": 15.0, "samples_per_s": 150.0, "i2t_r1": 36.0}
RETRAINED = CUT | {"i2t_r1": 70.8, "t2i_r1": 53.1}

ROWS = [
    Share("vision", "head_dim", 12, 768, 400, 28_000_000, 13_000_000, 5_000_000_000, 2_500_000_000),
    Share("vision", "neuron", 12, 36_864, 36_864, 56_000_000, 0, 11_000_000_000, 0),
    Share("text", "neuron", 12, 24_576, 12_288, 25_000_000, 12_500_000, 1_900_000_000, 950_000_000),
]


def lines(table, width=120):
    """Cells of each line that starts with a frame."""
    text = render(table, width)
    return [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in text.splitlines() if line[0] in "│┃"]


def test_comparison_of_three_states():
    head, *body = lines(comparison([("dense", DENSE), ("after the cut", CUT), ("retrained", RETRAINED)]))
    assert head == ["", "dense", "after the cut", "retrained", "retrained, % of dense"]
    assert body == [
        ["parameters", "149.6 M", "74.8 M", "74.8 M", "50.0 %"],
        ["FLOPs", "14.8 G", "7.40 G", "7.40 G", "50.0 %"],
        ["latency, ms", "20.00", "15.00", "15.00", "75.0 %"],
        ["samples/s", "100.00", "150.00", "150.00", "150.0 %"],
        ["image to text R@1", "71.50", "36.00", "70.80", "99.0 %"],
        ["text to image R@1", "-", "-", "53.10", "-"],
    ]


def test_a_metric_that_was_nothing_has_no_percent():
    rows = lines(comparison([("dense", {"cider": 1e-9, "accuracy": 0.0}), ("cut", {"cider": 5.0, "accuracy": 2.0})]))
    assert rows[1:] == [["CIDEr", "0.00", "5.00", "-"], ["accuracy, %", "0.00", "2.00", "-"]]


def test_comparison_of_one_state_has_no_percent():
    assert lines(comparison([("dense", {"my_score": 1.5, "params": 12})])) == [
        ["", "dense"],
        ["parameters", "12"],
        ["my_score", "1.50"],
    ]


def test_comparison_with_nothing_at_the_start():
    assert lines(comparison([("dense", {"bleu": 0.0}), ("cut", {"bleu": 1.0})]))[1] == ["bleu", "0.00", "1.00", "-"]


@pytest.mark.parametrize("names", [[], ["dense", "dense"]])
def test_comparison_refuses(names):
    with pytest.raises(ValueError, match=re.escape(f"the states to compare are {names!r}; give at least one")):
        comparison([(name, DENSE) for name in names])


def test_removed_table_and_its_total():
    head, *body = lines(removed_table(ROWS))
    assert head[:4] == ["modality", "kind", "sites", "units kept"]
    assert body[0] == [
        "vision", "head_dim", "12", "400 / 768", "15.0 M / 28.0 M", "46.4 %", "2.50 G / 5.00 G", "50.0 %",
    ]  # fmt: skip
    assert body[1][3:] == ["36,864 / 36,864", "56.0 M / 56.0 M", "0.0 %", "11.0 G / 11.0 G", "0.0 %"]
    removed, whole = 13.0 + 12.5, 28 + 56 + 25
    assert body[-1] == [
        "total", "", "36", "", f"{whole - removed:.1f} M / 109.0 M", f"{100 * removed / whole:.1f} %",
        "14.4 G / 17.9 G", f"{100 * 3.45 / 17.9:.1f} %",
    ]  # fmt: skip


def test_removed_table_refuses():
    with pytest.raises(ValueError, match="there is nothing to show: no site was given"):
        removed_table([])
    with pytest.raises(ValueError, match="text head removes 9 of 8 params; give 0 to all of them"):
        removed_table([Share("text", "head", 1, 4, 2, 8, 9, 8, 2)])
    with pytest.raises(ValueError, match="text head removes -1 of 4 units"):
        removed_table([Share("text", "head", 1, 4, 5, 8, 2, 8, 2)])


def test_sites_table():
    rows = [
        SitesRow("vision", "head", [12] * 12, 28_000_000, 5_000_000_000),
        SitesRow("text", "neuron", [2048, 1024], 25_000_000, 1_000_000_000),
    ]
    _, *body = lines(sites_table(rows, 100_000_000, 10_000_000_000))
    assert body == [
        ["vision", "head", "12", "12", "28.0 M", "28.0 %", "5.00 G", "50.0 %"],
        ["text", "neuron", "2", "1,024 to 2,048", "25.0 M", "25.0 %", "1.00 G", "10.0 %"],
    ]


def test_sites_table_refuses():
    with pytest.raises(ValueError, match="nothing to show: 0 rows of sites in a model of 5 parameters"):
        sites_table([], 5, 5)


def test_render_is_plain_text_of_one_width():
    text = render(removed_table(ROWS), width=110)
    assert "\x1b" not in text
    assert text.endswith("\n")
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 K"),
        (999_960, "1.00 M"),
        (9_994, "9.99 K"),
        (9_996, "10.0 K"),
        (0.25, "0.25"),
    ],
)
def test_human(number, text):
    assert human(number) == text


def test_latency_as_predicted_and_as_measured():
    rows = [
        replace(row, latency=time, latency_removed=time // 4)
        for row, time in zip(ROWS[:2], (4_000_000, 0), strict=True)
    ]
    assert lines(latency_table(rows, (1000.0, 600.0), (1100.0, 704.0))) == [
        ["latency", "dense, ms", "compressed, ms", "removed"],
        ["vision head_dim: what can go", "4.00", "3.00", "25.0 %"],
        ["vision neuron: what can go", "0.00", "0.00", "-"],
        ["whole model, predicted", "1,000.00", "600.00", "40.0 %"],
        ["whole model, measured", "1,100.00", "704.00", "36.0 %"],
    ]
    with pytest.raises(ValueError, match="the dense model is measured to take 0 ms; give more than 0"):
        latency_table([], (1.0, 0.5), (0, 0))
    with pytest.raises(ValueError, match="vision head_dim has no latency; leave it out, or measure it"):
        latency_table(ROWS, (1.0, 0.5), (1.0, 0.5))
