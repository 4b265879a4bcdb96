"""The demos of the BLIP tasks, made tiny: every phase runs, and what comes out loads and scores alike."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import upop
from upop.cli import build_parser, parse, recipe_of
from upop.metrics.captions import check_metrics
from upop.runs import Recipe, RunDirectory, check, evaluate, fit
from upop.runs.inspection import inspect
from upop.runs.summary import summarise
from upop.structure import Plan

ROOT = Path(__file__).parent.parent.parent
TINY = {
    "finetune.epochs": 1,
    "search.epochs": 2,
    "search.tolerance": 0.05,
    "retrain.epochs": 1,
    "measure.seconds": 0.1,
    "trainer.enable_progress_bar": False,
    "data.init_args.train_scenes": 24,
    "data.init_args.test_scenes": 12,
    "data.init_args.batch_size": 8,
}


def scratch(task: str) -> dict[str, Any]:
    """Start without the model of another demo."""
    return {"model.init_args.checkpoint": f"configs/models/shapes_blip_{task}", "model.init_args.from_scratch": True}


TASKS: dict[str, dict[str, Any]] = {
    "retrieval": {"model.init_args.k": 10},
    "vqa": {"model.init_args.k_test": 4, "data.init_args.questions_per_scene": 1, **scratch("vqa")},
    "caption": {"model.init_args.metrics": "[bleu_4, cider]"},
    "nlvr": {"data.init_args.train_pairs": 24, "data.init_args.test_pairs": 12, **scratch("nlvr")},
}


def made(task: str, path: Path, **changed: Any) -> tuple[Recipe, RunDirectory]:
    parser = build_parser()
    options = TINY | TASKS[task] | {"run_dir": path / "run"} | changed
    arguments = [f"--config={ROOT}/configs/demo_{task}.yaml", *(f"--{key}={value}" for key, value in options.items())]
    found = recipe_of(parser, parse(parser, arguments))
    return found, RunDirectory(path / "run", found.config)


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # recipes name their models relative to it


@pytest.mark.parametrize("task", TASKS)
def test_a_demo_runs_through_all_phases(tmp_path: Path, task: str) -> None:
    if task == "caption":
        try:
            check_metrics(["bleu_4", "cider"])
        except FileNotFoundError as error:
            pytest.skip(f"captions cannot be scored here: {error}")
    recipe, directory = made(task, tmp_path)
    fit(recipe, directory)
    model, processor = upop.load(directory.path / "compressed")
    plan = Plan.load(directory.path / "plan.json")
    assert plan.facts["params"]["left"] == sum(parameter.numel() for parameter in model.parameters())
    assert evaluate(recipe, recipe.new_task(model, processor)) == directory.evaluation("retrained")
    summary = summarise(recipe, directory)
    assert set(summary["states"]) == {"dense", "cut", "retrained"}
    assert {share["modality"] for share in summary["removed"]} == {"vision", "text", "fusion"}


def test_the_temperature_goes_on_from_phase_to_phase(tmp_path: Path) -> None:
    recipe, directory = made("retrieval", tmp_path, **{"finetune.lr": 0.1, "search.lr": 1e-8})
    fit(recipe, directory, only="finetune")
    fit(recipe, directory, only="search")
    learned, searched = (
        load_file(directory.phase(name) / "carried.safetensors")["temp"] for name in ("finetune", "search")
    )
    assert abs(float(learned) - 0.07) > 0.01
    assert float(searched) == pytest.approx(float(learned), abs=1e-4)


@pytest.mark.parametrize(("task", "made_of"), [("nlvr", "BlipForVisualReasoning"), ("vqa", "BlipForQuestionAnswering")])
def test_other_tasks_start_from_a_blip_for_retrieval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str, made_of: str
) -> None:
    recipe, directory = made("retrieval", tmp_path / "retrieval")
    fit(recipe, directory, only="finetune")
    start = {"model.init_args.checkpoint": directory.phase("finetune") / "model", "model.init_args.from_scratch": False}
    recipe, directory = made(task, tmp_path / task, **start)
    fit(recipe, directory, only="finetune")
    model, _ = upop.load(directory.phase("finetune") / "model")
    assert type(model).__name__ == made_of
    fit(recipe, directory, only="search")
    inspect(recipe.task.checkpoint, start_from=recipe.task.start_from)
    assert made_of in capsys.readouterr().out
    unready, _ = made(task, tmp_path / "unready", **start, **{"finetune.epochs": 0})
    with pytest.raises(ValueError, match=f"is a BlipForImageTextRetrieval; the {made_of} .* finetune.epochs"):
        check(unready)


def test_a_demo_whose_start_is_missing_says_what_makes_it(tmp_path: Path) -> None:
    start = {"model.init_args.checkpoint": "runs/nowhere/finetune/model", "model.init_args.from_scratch": False}
    recipe, _ = made("nlvr", tmp_path, **start)
    with pytest.raises(FileNotFoundError, match="no checkpoint directory at .*`upop finetune` with the recipe of that"):
        check(recipe)


@pytest.mark.parametrize(
    ("task", "setting", "message"),
    [
        ("retrieval", {"model.init_args.k": 500}, "k is 500"),
        ("vqa", {"model.init_args.k_test": 5000}, "k_test is 5000"),
        (
            "vqa",
            {"model.init_args.result_file": f"{__file__}/x.json"},
            r"result_file is '.*x.json', but '.*' is no dir",
        ),
        ("nlvr", {"model.init_args.result_file": f"{__file__}/x.csv"}, r"result_file is '.*x.csv', but '.*' is no dir"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_a_model_is_read(
    tmp_path: Path, task: str, setting: dict[str, Any], message: str
) -> None:
    recipe, _ = made(task, tmp_path, **setting, **{"model.init_args.checkpoint": "/nowhere"})
    with pytest.raises(ValueError, match=message):
        check(recipe)


def test_captioning_without_java_fails_in_the_first_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    recipe, _ = made("caption", tmp_path, **{"model.init_args.checkpoint": "/nowhere"})
    with pytest.raises(FileNotFoundError, match=r"(?i)java"):
        check(recipe)
