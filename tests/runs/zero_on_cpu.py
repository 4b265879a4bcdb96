"""ZeRO over processes of the CPU, for tests: DeepSpeed runs there, too, and only Lightning refuses it."""

from __future__ import annotations

import importlib.util
import shutil
from typing import Any

import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DeepSpeedStrategy

from upop.runs.zero import ZeroStrategy

SMALL = {"reduce_bucket_size": 20_000, "allgather_bucket_size": 20_000}
"""Buckets that hold a few layers of a tiny model, so that there are several."""


installed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")


def zero(stage: int) -> Any:
    """A parameter of tests: the strategy of this stage. DeepSpeed compiles its collectives for the CPU with g++."""
    missing = importlib.util.find_spec("deepspeed") is None or shutil.which("g++") is None
    return pytest.param(
        {"class_path": "tests.runs.zero_on_cpu.ZeroOnCPU", "init_args": {"stage": stage}},
        id=f"zero{stage}",
        marks=[pytest.mark.skipif(missing, reason="needs deepspeed and g++"), pytest.mark.slow],
    )


class ZeroOnCPU(ZeroStrategy):
    """Of the stage; at stage 3 no weight is small enough to stay whole, but for scalars and biases."""

    accelerators = (CPUAccelerator,)

    def __init__(self, stage: int = 2) -> None:
        super().__init__(stage, **SMALL)
        assert isinstance(self.config, dict)
        self.config["zero_optimization"]["stage3_param_persistence_threshold"] = 100

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", 0)  # DeepSpeed wants a number

    def setup_environment(self) -> None:
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        self.set_world_ranks()
        self._init_deepspeed_distributed()
