"""Whole runs on the built-in data: what they leave behind, that they resume, and that the cut changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

import upop
from tests.recipes import other_checkpoint, recipe
from tests.runs.breaking import stopped_in_the_second_epoch
from upop.export.directory import plan_of
from upop.families import find_sites
from upop.runs import Recipe, RunDirectory, check, evaluate, fit
from upop.runs.evaluation import default_checkpoint, evaluate_checkpoint
from upop.runs.summary import summarise
from upop.structure import Plan


def made(config: dict[str, Any]) -> tuple[Recipe, RunDirectory]:
    path = Path(config["run_dir"])
    found = recipe(config, path.parent / "config.yaml")
    return found, RunDirectory(path, found.config)


def test_a_run_leaves_a_smaller_model_that_loads(config: dict[str, Any]) -> None:
    made_recipe, directory = made(config)
    fit(made_recipe, directory)
    model, processor = upop.load(directory.path / "compressed")
    dense, _ = upop.load(made_recipe.task.checkpoint)
    plan = Plan.load(directory.path / "plan.json")
    left = sum(parameter.numel() for parameter in model.parameters())
    assert left == plan.facts["params"]["left"] < sum(parameter.numel() for parameter in dense.parameters())
    assert processor.tokenizer("a red circle")["input_ids"]
    assert evaluate(made_recipe, made_recipe.new_task(model, processor)) == directory.evaluation("retrained")


@pytest.mark.parametrize("name", ["siglip", "dual_encoder"])
def test_other_dual_encoders_run_through_all_phases(config: dict[str, Any], tmp_path: Path, name: str) -> None:
    config["model"]["init_args"]["checkpoint"] = str(other_checkpoint(tmp_path / name, name))
    config["distill"] = {"logits": 1.0, "features": 1.0}
    config["search"]["units"] = ["head", "head_dim", "neuron"]
    made_recipe, directory = made(config)
    fit(made_recipe, directory)
    model, processor = upop.load(directory.path / "compressed")
    assert evaluate(made_recipe, made_recipe.new_task(model, processor)) == directory.evaluation("retrained")


def test_the_cut_changes_no_metric_and_no_logit(config: dict[str, Any]) -> None:
    made_recipe, directory = made(config)
    fit(made_recipe, directory, only="search")
    cut = directory.evaluation("cut")
    checkpoint = directory.path / "search" / "dense"
    last = torch.load(directory.path / "search/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    model, processor = upop.load(made_recipe.task.checkpoint)
    weights = {
        name.removeprefix("model.").replace(".parametrizations", "").removesuffix(".original"): value
        for name, value in last.items()
    }
    model.load_state_dict(weights)
    from upop.export import save

    save(model, processor, checkpoint)
    assert evaluate_checkpoint(made_recipe, str(checkpoint), str(directory.path / "plan.json")) == cut


def test_done_phases_are_skipped_and_files_stay(config: dict[str, Any]) -> None:
    made_recipe, directory = made(config)
    fit(made_recipe, directory)
    weights = (directory.path / "compressed/model.safetensors").read_bytes()
    stamp = (directory.path / "compressed/model.safetensors").stat().st_mtime_ns
    fit(*made(config))
    assert (directory.path / "compressed/model.safetensors").stat().st_mtime_ns == stamp
    assert (directory.path / "compressed/model.safetensors").read_bytes() == weights


def test_phases_one_by_one_give_what_fit_gives(config: dict[str, Any], tmp_path: Path) -> None:
    config["finetune"] = {"epochs": 1, "lr": 1e-3}
    fit(*made(config))
    apart = config | {"run_dir": str(tmp_path / "apart")}
    for phase in ("finetune", "search", "retrain"):
        fit(*made(apart), only=phase)
    for name in ("plan.json", "compressed/model.safetensors"):
        assert (Path(config["run_dir"]) / name).read_bytes() == (tmp_path / "apart" / name).read_bytes()


@pytest.mark.parametrize("phase", ["search", "retrain"])
@pytest.mark.parametrize("contrast", ["batch", "queue"])
def test_a_run_killed_in_a_phase_goes_on_to_the_same_result(
    config: dict[str, Any], tmp_path: Path, phase: str, contrast: str
) -> None:
    config["model"]["init_args"] |= {"contrast": contrast, "queue_size": 12}
    config["search"]["epochs"] = config["retrain"]["epochs"] = 2
    config["distill"] = {"logits": 1.0, "features": 1.0}
    fit(*made(config))
    broken = config | {"run_dir": str(tmp_path / "broken")}
    if phase == "retrain":
        fit(*made(broken), only="search")
    with stopped_in_the_second_epoch():
        fit(*made(broken))
    assert not RunDirectory(broken["run_dir"], made(broken)[0].config).done(phase)
    fit(*made(broken))
    for name in ("plan.json", "compressed/model.safetensors"):
        assert (Path(config["run_dir"]) / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()


def test_a_run_killed_before_the_plan_was_written_writes_it(config: dict[str, Any]) -> None:
    made_recipe, directory = made(config)
    fit(made_recipe, directory, only="search")
    plan = (directory.path / "plan.json").read_bytes()
    (directory.path / "plan.json").unlink()
    (directory.path / "state.json").unlink()
    again, directory = made(config)
    fit(again, directory, only="search")
    assert (directory.path / "plan.json").read_bytes() == plan


@pytest.mark.parametrize("logger", [False, True])
def test_the_pictures_do_not_depend_on_the_logger(config: dict[str, Any], logger: bool) -> None:
    config["trainer"] |= {"logger": logger, "log_every_n_steps": 50}
    made_recipe, directory = made(config)
    fit(made_recipe, directory)
    summarise(made_recipe, directory)
    assert (directory.path / "search.png").is_file()


def test_test_takes_the_dense_model_of_the_run_for_a_plan(config: dict[str, Any]) -> None:
    config["finetune"] = {"epochs": 1, "lr": 1e-3}
    made_recipe, directory = made(config)
    assert default_checkpoint(made_recipe, directory.path, dense=False) == made_recipe.task.checkpoint
    fit(made_recipe, directory)
    assert default_checkpoint(made_recipe, directory.path, dense=False) == str(directory.path / "compressed")
    assert default_checkpoint(made_recipe, directory.path, dense=True) == str(directory.path / "finetune/model")


def test_test_has_nothing_to_show_of_a_run_from_scratch_that_did_not_train(config: dict[str, Any]) -> None:
    config["model"]["init_args"]["from_scratch"] = True
    made_recipe, directory = made(config)
    with pytest.raises(
        ValueError, match=r"no model in run directory '.*run', and the recipe starts from random weights"
    ):
        default_checkpoint(made_recipe, directory.path, dense=False)


def test_a_phase_out_of_order_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="phase 'retrain' needs 'search', which is not done in .*; run it first"):
        fit(*made(config), only="retrain")
    with pytest.raises(ValueError, match="phase 'finetune' is left out by this configuration: finetune.epochs is 0"):
        fit(*made(config), only="finetune")


def test_everything_is_checked_before_training(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "fit", lambda *_, **__: pytest.fail("trained"))
    for change, message in (
        ({"ceiling": {"vision": 0.1, "text": 0.1}}, "ceiling"),
        ({"floor": {"visoin": 0.1}}, r"visoin.*did you mean 'vision'"),
        ({"multiple_of": {"neuron": 999}}, "999"),
        ({"epochs": 0}, "search.epochs is 0; give 1 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            check(recipe(config | {"search": config["search"] | change}, Path(config["run_dir"]).parent / "c.yaml"))
    config["model"]["init_args"]["from_scratch"] = True
    with pytest.raises(ValueError, match="starts from random weights; give finetune.epochs of 1 or more"):
        check(recipe(config, Path(config["run_dir"]).parent / "c.yaml"))


def test_the_task_is_asked_for_what_it_needs_before_the_model_is_read(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any) -> None:
        raise FileNotFoundError("no java")

    config["model"]["init_args"]["checkpoint"] = "/nowhere/model"
    monkeypatch.setattr("upop.tasks.Retrieval.preflight", fail)
    with pytest.raises(FileNotFoundError, match="no java"):
        check(recipe(config, Path(config["run_dir"]).parent / "c.yaml"))


def test_the_data_are_checked_before_the_model_is_read(config: dict[str, Any]) -> None:
    config["model"]["init_args"]["checkpoint"] = "/nowhere/model"
    config["data"] = {"class_path": "upop.data.CocoRetrieval", "init_args": {"images": "/nope", "annotations": "/nope"}}
    with pytest.raises(FileNotFoundError, match="/nope"):
        check(recipe(config, Path(config["run_dir"]).parent / "c.yaml"))


def test_a_plan_on_a_compressed_model_is_refused(config: dict[str, Any]) -> None:
    made_recipe, directory = made(config)
    fit(made_recipe, directory, only="search")
    compressed = str(directory.path / "search/compressed")
    with pytest.raises(ValueError, match="is compressed already; give --plan with the dense checkpoint"):
        evaluate_checkpoint(made_recipe, compressed, str(directory.path / "plan.json"))


def test_the_compressed_directory_names_what_was_removed(config: dict[str, Any]) -> None:
    made_recipe, directory = made(config)
    fit(made_recipe, directory)
    dense, _ = upop.load(made_recipe.task.checkpoint)
    found = plan_of(directory.path / "compressed")
    assert found is not None
    plan, kinds = found
    assert kinds == ["head_dim", "neuron"]
    assert {site.name for site in find_sites(dense)} == set(plan.keep)
    card = (directory.path / "compressed/README.md").read_text()
    evaluations = [directory.evaluation(name) or {} for name in ("dense", "retrained")]
    for row in [f"| {evaluations[0]['mean']:.2f} | {evaluations[1]['mean']:.2f} |"]:
        assert row in card
