"""Recipes from files and overrides, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.failing import fails
from tests.recipes import write
from upop.cli import build_parser, main, parse, recipe_of


@pytest.mark.parametrize("verb", ["fit", "finetune", "search", "retrain", "test"])
def test_help_of_a_verb_explains_the_keys(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "--search.interval" in out
    assert "Optimizer steps between two mask updates" in out
    assert "--retrain.epochs" in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"search": {"remved": 0.5}}, "Group 'search' does not accept option 'remved'; did you mean 'removed'?"),
        ({"serach": {"removed": 0.5}}, "Option 'serach.removed' is not accepted; did you mean 'search'?"),
        ({"search": {"removed": "half"}}, 'Parser key "search.removed": Expected float. Got value: half'),
        (
            {"search": {"schedule": "sin"}},
            "Parser key \"search.schedule\": Expected one of ['sine', 'cubic', 'one_shot']. Got value: sin",
        ),
        (
            {"trainer": {"max_epoch": 3}},
            "Group 'trainer' does not accept option 'max_epoch'; did you mean 'max_epochs'?",
        ),
        ({"trainer": {"accelerator": "abacus"}}, "abacus"),
        ({"trainer": {"devices": 0}}, "trainer: `Trainer(devices=0)` value is not a valid input"),
        (
            {"run_dir": "/dev/null/run"},
            "run directory '/dev/null/run' is not writable: Not a directory; choose another",
        ),
        (
            {"search": {"floor": {"vision": 0.9, "text": 0.9}}},
            "search.floor['vision'] = 0.9 bind: loosen them, or change",
        ),
        ({"rundir": "x"}, "Option 'rundir' is not accepted; did you mean 'run_dir'?"),
        (
            {"search": {"removed": 1.3}},
            "search.removed is 1.3; it is the fraction to remove, between 0 and 1 (exclusive)",
        ),
        ({"retrain": {"epochs": -1}}, "epochs is -1; give 0 or more"),
        ({"retrain": {"epochs": "many"}}, 'Parser key "retrain.epochs": Expected int. Got value: many'),
        ({"distill": {"logit": 1.0}}, "Group 'distill' does not accept option 'logit'; did you mean 'logits'?"),
        (
            {"trainer": {"max_epochs": 3}},
            "trainer.max_epochs is 3, but upop sets it; set finetune.epochs, search.epochs",
        ),
        ({"trainer": {"precision": "bf16-true"}}, "trainer.precision is 'bf16-true', but weights stay in fp32; give"),
        ({"trainer": {"enable_checkpointing": False}}, "trainer.enable_checkpointing is False, but a run has to be"),
        ({"trainer": {"strategy": "fsdp"}}, "trainer.strategy is 'fsdp', which flattens the weights whose rows masks"),
        ({"trainer": {"strategy": "deepspeed_stage_3_offload"}}, "'deepspeed_stage_3_offload', which keeps weights or"),
        ({"search": {"policy": "unfied"}}, "did you mean 'unified'?"),
        ({"search": {"floor": {"audio": 0.1}}}, "audio"),
        ({"search": {"multiple_of": {"neuron": 4096}}}, "4096"),
        ({"search": {"ceiling": {"vision": 0.1, "text": 0.1}}}, "ceiling"),
    ],
)
def test_a_wrong_key_or_value_in_the_recipe(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    for key, value in change.items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    assert message in fails(capsys, "fit", "--config", str(write(config, tmp_path / "config.yaml")))


def test_the_beginning_of_an_option_is_not_the_option(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(write(config, tmp_path / "config.yaml"))
    line = fails(capsys, "fit", "--config", file, "--search.remove", "0.75")
    assert line.endswith("unrecognized arguments: --search.remove 0.75; did you mean 'removed'?")


def test_a_wrong_key_of_the_task_or_the_data(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config["data"]["init_args"]["batchsize"] = 3
    line = fails(capsys, "fit", "--config", str(write(config, tmp_path / "config.yaml")))
    assert line.endswith("'upop.data.ShapesRetrieval': Option 'batchsize' is not accepted; did you mean 'batch_size'?")
    del config["data"]["init_args"]["batchsize"]
    config["model"]["init_args"]["contrst"] = "batch"
    line = fails(capsys, "fit", "--config", str(write(config, tmp_path / "config.yaml")))
    assert line.endswith("'upop.tasks.Retrieval': Option 'contrst' is not accepted; did you mean 'contrast'?")


def test_a_wrong_value_of_the_data_is_all_that_is_said(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config["data"]["init_args"]["batch_size"] = 0
    line = fails(capsys, "fit", "--config", str(write(config, tmp_path / "config.yaml")))
    assert line == "batch_size is 0; set it to 1 or more"


def test_a_wrong_class(config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config["model"]["class_path"] = "upop.tasks.Retrival"
    line = fails(capsys, "fit", "--config", str(write(config, tmp_path / "config.yaml")))
    assert line.endswith("module 'upop.tasks' has no attribute 'Retrival'; did you mean 'Retrieval'?")


def test_later_files_overlay_earlier_ones_and_options_both(config: dict[str, Any], tmp_path: Path) -> None:
    base, overlay = write(config, tmp_path / "base.yaml"), tmp_path / "overlay.yaml"
    overlay.write_text(yaml.safe_dump({"search": {"removed": 0.3}, "seed_everything": 7}))
    parser = build_parser()
    recipe = recipe_of(parser, parse(parser, [f"--config={base}", f"--config={overlay}", "--search.interval=3"]))
    assert (recipe.search.budget.removed, recipe.search.interval) == (0.3, 3)
    assert recipe.seed == 7
    assert recipe.config["search"]["seed"] == 7  # what is left out is the seed of all
    assert recipe.config["data"]["init_args"]["seed"] == 7
