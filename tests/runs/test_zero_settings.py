"""What of DeepSpeed's settings is refused before a model is read, and with what words."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.strategies import DeepSpeedStrategy

from tests.recipes import recipe
from tests.runs.zero_on_cpu import installed
from upop.runs import check
from upop.runs.strategies import check_strategy
from upop.runs.zero_settings import check_deepspeed, check_zero


def named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take DeepSpeed for installed, as far as names go."""
    monkeypatch.setattr("upop.runs.strategies.check_deepspeed", lambda: None)


def test_without_deepspeed_a_run_says_what_to_install(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "deepspeed" else find(name))
    config["trainer"]["strategy"] = "deepspeed_stage_2"
    config["model"]["init_args"]["checkpoint"] = "/nowhere"
    with pytest.raises(
        ValueError, match=r"DeepSpeed's, which is not installed; pip install 'upop\[deepspeed\]', or give"
    ):
        check(recipe(config, tmp_path / "config.yaml"))


@installed
def test_deepspeed_takes_no_settings_past_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    check_deepspeed()
    monkeypatch.setenv("PL_DEEPSPEED_CONFIG_PATH", "zero.json")
    with pytest.raises(ValueError, match="PL_DEEPSPEED_CONFIG_PATH is set, whose file .*; unset it"):
        check_strategy({"strategy": "deepspeed_stage_2"})


@installed
@pytest.mark.parametrize("name", ["deepspeed", "deepspeed_stage_1", "deepspeed_stage_2", "deepspeed_stage_3"])
def test_on_a_cpu_it_is_refused_before_a_model_is_read(config: dict[str, Any], tmp_path: Path, name: str) -> None:
    config["trainer"] |= {"strategy": name, "accelerator": "cpu", "devices": 2}
    config["model"]["init_args"]["checkpoint"] = "/nowhere"
    with pytest.raises(
        ValueError, match="runs on NVIDIA GPUs, but trainer.accelerator is CPUAccelerator; give fsdp2 or"
    ):
        check(recipe(config, tmp_path / "config.yaml"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "16-mixed"}, "'16-mixed', whose loss scaling .* give bf16-mixed, or strategy ddp"),
        ({"gradient_clip_algorithm": "value"}, "is 'value', but DeepSpeed clips norms; leave it out, or give fsdp2"),
    ],
)
def test_what_it_does_not_go_with_is_refused(
    settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    named(monkeypatch)
    with pytest.raises(ValueError, match=message):
        check_strategy({"strategy": "deepspeed_stage_2", **settings})
    with pytest.raises(ValueError, match="set compile to false"):
        check_strategy({"strategy": "deepspeed_stage_2"}, compiles=True)
    check_strategy({"strategy": "deepspeed_stage_2", "precision": "bf16-mixed", "gradient_clip_val": 1.0})


@installed
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stage": 0}, "is ZeRO stage 0; give stage 1, 2 or 3, or ddp"),
        ({"zero_optimization": False}, "is ZeRO stage None"),
        ({"stage": "x"}, "is ZeRO stage 'x'"),
        ({"config": {"zero_optimization": 3}}, "is ZeRO stage 3; give stage 1, 2 or 3"),
        ({"stage": 3, "offload_optimizer": True}, r"has 'zero_optimization\.offload_optimizer', .* take it out"),
        ({"stage": 3, "offload_parameters": True}, r"has 'zero_optimization\.offload_param', .* take it out"),
        (
            {"config": {"zero_optimization": {"stage": 3, "mics_shard_size": 2}}},
            r"has 'zero_optimization\.mics_shard_size'",
        ),
        ({"config": {"zero_optimization": {"stage": 2}, "gradient_clipping": 1.0}}, "has 'gradient_clipping', which"),
        (
            {"config": {"zero_optimization": {"stage": 2}, "data_types": {}}},
            "has 'data_types', which .* serves: zero_opt",
        ),
        (
            {"config": {"zero_optimization": {"stage": 2}, "fp16": {"enabled": True}}},
            "has 'fp16', which follows from .*",
        ),
        (
            {"config": {"zero_optimization": {"stage": 2}, "optimizer": {"type": "Adam"}}},
            "has 'optimizer', which follows",
        ),
    ],
)
def test_settings_that_do_not_serve_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_zero(DeepSpeedStrategy(**settings))
