"""ZeRO as a strategy, before anything runs; ``test_sharded`` runs it over two processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DeepSpeedStrategy

from tests.runs.zero_on_cpu import installed
from upop.runs.strategies import check_placement, check_strategy, for_evaluation, for_training
from upop.runs.zero import BUCKET, ZeroStrategy
from upop.runs.zero_settings import check_zero, stage_of


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
