from __future__ import annotations

import math

import pytest

from upop.report.facts import Run, check_metric, label, percent, shown

from .samples import summary


def test_a_run_is_what_its_summary_says():
    told = summary()
    run = Run.of(told, "x")
    assert run.states["dense"]["params"] == told["states"]["dense"]["params"]
    assert [site.name for site in run.sites] == [site["name"] for site in told["sites"]]
    assert run.sites[0].block == "vision_model.encoder.layers.0.self_attn"
    assert run.sites[-1].block.endswith(".crossattention.self")
    assert run.task == "Retrieval on Shapes"
    assert run.share("latency_ms") == pytest.approx(165.885 / 277.367)
    assert run.value("cut", "latency_ms") is None
    assert run.value("nowhere", "params") is None


@pytest.mark.parametrize(
    ("metrics", "main"),
    [
        (("i2t_r1", "mean"), "mean"),
        (("accuracy_other", "accuracy"), "accuracy"),
        (("bleu_4", "cider"), "cider"),
        (("psnr", "ssim"), "psnr"),
        ((), None),
    ],
)
def test_the_main_metric(metrics, main):
    assert Run.of(summary(metrics=metrics), "x").main_metric() == main


def test_what_is_no_number_has_no_value():
    told = summary()
    told["states"]["retrained"]["mean"] = math.nan
    run = Run.of(told, "x")
    assert run.value("retrained", "mean") is None
    assert run.share("mean") is None
    assert shown("mean", math.nan) == percent(math.inf) == "-"


def test_numbers_as_a_reader_sees_them():
    assert shown("params", 2_581_530) == "2.58\u00a0M"
    assert shown("cider", 1234.5) == "1,234.50"
    assert (label("i2t_r1"), label("psnr")) == ("image to text R@1", "psnr")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda told: told.pop("sites"), "it lacks 'sites'"),
        (lambda told: told["search"].pop("target"), "it lacks 'target'"),
        (lambda told: told["states"].pop("retrained"), r"its states are \['cut', 'dense'\]; 'dense' and 'retrained'"),
        (lambda told: told["states"]["dense"].update(params=0), "its state 'dense' has no parameters or no FLOPs"),
        (lambda told: told.update(sites=3), r"it holds something in another form \("),
        (lambda told: told["sites"][0].update(units="many"), r"it holds something in another form \("),
        (lambda told: told["sites"][0].update(units_kept=99), "it keeps 99 of 32 units at site 'vision_model.encoder"),
        (lambda told: told["states"]["dense"].update(mean="high"), "could not convert string to float: 'high'"),
    ],
)
def test_a_summary_in_another_form(change, message):
    told = summary()
    change(told)
    with pytest.raises(ValueError, match=message):
        Run.of(told, "x")


def test_a_metric_that_a_run_does_not_have():
    one, two = Run.of(summary(metrics=("cider", "mean")), "one"), Run.of(summary(metrics=("cider",)), "two")
    check_metric("cider", [one, two])
    with pytest.raises(ValueError, match=r"run 'two' has no metric 'mean'; all runs have \['cider'\]$"):
        check_metric("mean", [one, two])
    with pytest.raises(ValueError, match=r"run 'one' has no metric 'cidr'; .* did you mean 'cider'\?"):
        check_metric("cidr", [one, two])
    with pytest.raises(ValueError, match="the runs share no metric; leave --metric out"):
        check_metric("cider", [one, Run.of(summary(metrics=("psnr",)), "three")])
