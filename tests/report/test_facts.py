from __future__ import annotations

import math

import pytest

from upop.report.facts import Run, Unfinished, check_metric, label, percent, shown

from .samples import so_far, summary

WHY = Unfinished({"search": "next"}, "upop fit --config x.yaml")


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


def test_a_run_that_is_not_finished_has_what_there_is():
    assert Run.of(summary(), "x").unfinished is None
    assert Run.of(summary(), "x").last == "retrained"
    run = Run.of(so_far("dense", "cut"), "x", WHY)
    assert run.unfinished == WHY
    assert run.last == "cut"
    assert run.metrics == ["i2t_r1", "mean"]
    assert run.main_metric() == "mean"
    assert run.share("mean") == pytest.approx(29.75 / 40)
    assert run.share("latency_ms") is None
    told = so_far(search=False)
    told["search"]["target"] = None
    run = Run.of(told, "x", WHY)
    assert (run.target, run.metrics, run.main_metric(), run.share("params")) == (None, [], None, None)
    told = so_far("dense")
    del told["states"]["dense"]["flops"]
    assert Run.of(told, "x", WHY).value("dense", "flops") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda told: told["states"]["dense"].update(params=0), "its state 'dense' has no parameters or no FLOPs"),
        (lambda told: told["sites"][0].update(units_kept=99), "it keeps 99 of 32 units at site 'vision_model.encoder"),
        (lambda told: told["search"].update(history=3), r"it holds something in another form \("),
        (lambda told: told["search"].update(history=[3]), r"it holds something in another form \("),
    ],
)
def test_what_there_is_has_to_be_sound(change, message):
    told = so_far("dense")
    change(told)
    with pytest.raises(ValueError, match=message):
        Run.of(told, "x", WHY)


def test_a_finished_run_needs_its_target():
    told = summary()
    told["search"]["target"] = None
    with pytest.raises(ValueError, match="it holds something in another form"):
        Run.of(told, "x")


def test_a_metric_that_an_unfinished_run_does_not_have_yet():
    done, begun = Run.of(summary(), "done"), Run.of(so_far("dense"), "begun", WHY)
    nothing = Run.of(so_far(), "nothing", WHY)
    check_metric("mean", [nothing, done, begun])
    with pytest.raises(ValueError, match=r"run 'begun' has no metric 'men'; .*; did you mean 'mean'\?"):
        check_metric("men", [nothing, begun])
    with pytest.raises(ValueError, match="nothing was measured yet, so there is no metric 'mean'; leave --metric out"):
        check_metric("mean", [nothing])


def test_a_metric_that_a_run_does_not_have():
    one, two = Run.of(summary(metrics=("cider", "mean")), "one"), Run.of(summary(metrics=("cider",)), "two")
    check_metric("cider", [one, two])
    with pytest.raises(ValueError, match=r"run 'two' has no metric 'mean'; all runs have \['cider'\]$"):
        check_metric("mean", [one, two])
    with pytest.raises(ValueError, match=r"run 'one' has no metric 'cidr'; .* did you mean 'cider'\?"):
        check_metric("cidr", [one, two])
    with pytest.raises(ValueError, match="the runs share no metric; leave --metric out"):
        check_metric("cider", [one, Run.of(summary(metrics=("psnr",)), "three")])
