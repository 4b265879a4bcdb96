"""Which strategies serve a run, what is said of the others, and what a sharded one is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy

from tests.recipes import recipe
from upop.runs import check
from upop.runs.strategies import (
    SERVE,
    ShardedStrategy,
    check_placement,
    check_strategy,
    for_evaluation,
    for_training,
    gathered,
)


def explicit(**settings: Any) -> ModelParallelStrategy:
    return ModelParallelStrategy(**{"tensor_parallel_size": 1, "save_distributed_checkpoint": False} | settings)


@pytest.mark.parametrize("strategy", [None, *SERVE, DDPStrategy(), SingleDeviceStrategy(), explicit()])
def test_what_serves_passes(strategy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upop.runs.strategies.check_deepspeed", lambda: None)  # DeepSpeed is an extra
    check_strategy({"strategy": strategy, "precision": "bf16-mixed"})


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("fsdp", r"'fsdp', which flattens the weights whose rows masks scale; give fsdp2, .* or ddp"),
        ("fsdp_cpu_offload", "'fsdp_cpu_offload', which flattens"),
        (FSDPStrategy(), "'FSDPStrategy', which flattens"),
        ("deepspeed_stage_3_offload", r"'deepspeed_stage_3_offload', which keeps .* of the host, .* or fsdp2"),
        ("deepspeed_stage_4", "'deepspeed_stage_4'; give one of .*; did you mean 'deepspeed_stage_"),
        ("ddp_spawn", "'ddp_spawn', which starts processes that end with each phase.*; give ddp"),
        ("ddp_notebook_find_unused_parameters_true", "which starts processes that end with each phase"),
        (DDPStrategy(start_method="fork"), "'DDPStrategy', which starts processes that end with each phase"),
        ("xla", "'xla', which has not been tried; give ddp"),
        ("fsdp3", r"'fsdp3'; give one of \[.*'fsdp2', 'deepspeed', .*\]; did you mean 'fsdp2'"),
        ("dpp", r"'dpp'; give one of \['auto', 'ddp', .*'fsdp2', .*\]; did you mean 'ddp'"),
        (
            explicit(tensor_parallel_size=2),
            "tensor_parallel_size of trainer.strategy is 2, which splits .* set it to 1",
        ),
        (explicit(tensor_parallel_size="auto"), "tensor_parallel_size of trainer.strategy is 'auto'"),
        (explicit(save_distributed_checkpoint=True), "save_distributed_checkpoint of .* is True, .* set it to false"),
    ],
)
def test_what_does_not_serve_is_refused_with_the_reason_and_the_nearest_that_does(strategy: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_strategy({"strategy": strategy})


def test_what_sharding_does_not_go_with_is_refused() -> None:
    with pytest.raises(ValueError, match="trainer.precision is '16-mixed', whose loss scaling .* give bf16-mixed, or "):
        check_strategy({"strategy": "fsdp2", "precision": "16-mixed"})
    with pytest.raises(ValueError, match=r"'fsdp2', which gathers weights inside the towers .* set compile to false"):
        check_strategy({"strategy": "fsdp2"}, compiles=True)
    check_strategy({"strategy": "ddp", "precision": "16-mixed"}, compiles=True)


def trainer(strategy: Any, devices: int = 2) -> Trainer:
    return Trainer(accelerator="cpu", devices=devices, strategy=strategy, logger=False, enable_checkpointing=False)


@pytest.mark.parametrize("strategy", ["fsdp2", explicit(), explicit(data_parallel_size=2)])
def test_a_sharded_strategy_spans_all_processes(strategy: Any) -> None:
    made = trainer(for_training(strategy))
    assert isinstance(made.strategy, ShardedStrategy)
    assert made.strategy.shards == made.world_size == 2
    check_placement(made)


def test_another_number_of_shards_is_refused_before_anything_runs(config: dict[str, Any], tmp_path: Path) -> None:
    name = "lightning.pytorch.strategies.ModelParallelStrategy"
    sizes = {"data_parallel_size": 4, "tensor_parallel_size": 1, "save_distributed_checkpoint": False}
    config["trainer"] |= {"devices": 2, "strategy": {"class_path": name, "init_args": sizes}}
    config["model"]["init_args"]["checkpoint"] = "/nowhere"
    with pytest.raises(ValueError, match="data_parallel_size of trainer.strategy is 4, but there are 2 processes"):
        check(recipe(config, tmp_path / "config.yaml"))


def test_evaluations_do_not_shard_and_the_rest_stays_as_it_is() -> None:
    assert for_evaluation("fsdp2") == for_evaluation(explicit()) == "auto"
    ddp = DDPStrategy()
    assert for_evaluation(ddp) is for_training(ddp) is ddp
    assert for_training("fsdp2") == "fsdp2"
    assert for_evaluation("ddp") == "ddp"


def test_a_checkpoint_of_a_sharded_phase_never_runs_code(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        ModelParallelStrategy, "load_checkpoint", lambda self, path, weights_only: asked.append(weights_only)
    )
    for wish in (None, False, True):
        ShardedStrategy().load_checkpoint("last.ckpt", wish)
    assert asked == [True, True, True]


def test_a_task_that_is_whole_is_not_made_anew(config: dict[str, Any], tmp_path: Path) -> None:
    task = recipe(config, tmp_path / "config.yaml").task
    assert gathered(task, lambda: pytest.fail("nothing to gather")) is task
