"""What of DeepSpeed's ZeRO is refused before anything runs; ``test_sharded`` runs what serves, over two processes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.precision import DeepSpeedPrecision, MixedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy

from tests.recipes import recipe
from upop.runs import check
from upop.runs.strategies import check_placement, check_strategy, for_evaluation, for_training
from upop.runs.zero import BUCKET, ZeroPrecision, ZeroStrategy, check_deepspeed, check_zero, stage_of

installed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")


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


@installed
def test_a_strategy_of_lightning_becomes_ours_with_its_settings() -> None:
    given = DeepSpeedStrategy(stage=3, reduce_bucket_size=1234, process_group_backend="gloo")
    check_strategy({"strategy": given})
    made = for_training(given)
    assert isinstance(made, ZeroStrategy)
    assert made.stage == stage_of(given) == 3
    assert isinstance(made.config, dict)
    assert made.config["zero_optimization"]["reduce_bucket_size"] == 1234
    assert made.config is not given.config
    assert made._process_group_backend == "gloo"
    assert for_evaluation(given) == for_evaluation("deepspeed_stage_1") == "auto"
    assert for_training(made) is made
    zero = made.config["zero_optimization"]
    assert zero["stage3_max_reuse_distance"] == 0, "weights are shared out again after each use"
    own = for_training("deepspeed_stage_3")
    assert isinstance(own, ZeroStrategy)
    assert isinstance(own.config, dict)
    check_zero(own)
    assert own.config["zero_optimization"]["reduce_bucket_size"] == BUCKET
    stages = {name: for_training(name) for name in ("deepspeed", "deepspeed_stage_1", "deepspeed_stage_3")}
    assert [strategy.stage for strategy in stages.values() if isinstance(strategy, ZeroStrategy)] == [2, 1, 3]


@installed
def test_weights_stay_in_fp32_under_autocast() -> None:
    made = ZeroStrategy(2)
    trainer = Trainer(accelerator="cpu", strategy=made, precision="bf16-mixed", logger=False, barebones=True)
    precision = trainer.precision_plugin
    assert type(precision) is ZeroPrecision
    assert precision is made.precision_plugin
    layer, batch = torch.nn.Linear(2, 2), torch.ones(1, 2)
    assert precision.convert_module(layer).weight.dtype == torch.float32
    assert precision.convert_input(batch).dtype == torch.float32
    with precision.forward_context():
        assert layer(batch).dtype == torch.bfloat16
    with ZeroPrecision("32-true").forward_context():
        assert layer(batch).dtype == torch.float32
    made.precision_plugin = mixed = MixedPrecision("bf16-mixed", "cpu")
    assert made.precision_plugin is mixed
    made.precision_plugin = DeepSpeedPrecision("32-true")
    assert type(made.precision_plugin) is ZeroPrecision
    with pytest.raises(ValueError, match="runs on NVIDIA GPUs"):
        check_placement(trainer)


@installed
def test_other_gpus_than_the_first_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Anywhere(ZeroStrategy):
        accelerators = (CPUAccelerator,)

    made = Anywhere(2)
    trainer = Trainer(accelerator="cpu", devices=2, strategy=made, logger=False, barebones=True)
    check_placement(trainer)
    monkeypatch.setattr(made, "parallel_devices", [torch.device("cuda", 2), torch.device("cuda", 3)])
    with pytest.raises(ValueError, match=r"is \[2, 3\], .* give trainer.devices: 2 and set CUDA_VISIBLE_DEVICES=2,3"):
        check_placement(trainer)
    made.parallel_devices = [torch.device("cuda", 0), torch.device("cuda", 1)]
    check_placement(trainer)


@installed
def test_a_checkpoint_never_runs_code(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        "lightning.pytorch.strategies.Strategy.load_checkpoint",
        lambda self, path, weights_only: asked.append(weights_only),
    )
    for wish in (None, False, True):
        ZeroStrategy().load_checkpoint("last.ckpt", wish)
    assert asked == [True, True, True]
