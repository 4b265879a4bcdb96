"""fp32 weights and autocast under DeepSpeed."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import DeepSpeedPrecision, MixedPrecision

from tests.runs.zero_on_cpu import installed
from upop.runs.strategies import check_placement
from upop.runs.zero import ZeroStrategy
from upop.runs.zero_precision import ZeroPrecision


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
