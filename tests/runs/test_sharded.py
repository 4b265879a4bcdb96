"""Runs whose weights are sharded over two processes: the same plan, weights and metrics as one process has."""

from __future__ import annotations

import json
import os
import subprocess
import weakref
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file

import upop
from tests.recipes import other_checkpoint, recipe
from tests.runs.blip_searches import TASKS, both, search_twice
from tests.runs.processes import (
    CARRIED,
    WEIGHTS,
    assert_killed_goes_on,
    assert_same,
    assert_same_search,
    close,
    fit_here,
    over_two_ranks,
)
from tests.runs.processes import settings as tiny_settings
from tests.runs.processes import upop as command
from tests.runs.zero_on_cpu import zero
from upop.runs import check
from upop.runs.zero_engine import forwards
from upop.structure import Plan
from upop.tasks.sharding import is_sharded

EXPLICIT = {
    "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
    "init_args": {"data_parallel_size": 2, "tensor_parallel_size": 1, "save_distributed_checkpoint": False},
}
FSDP2 = "fsdp2"
LINEAR = torch.nn.functional.linear
ALL = [FSDP2, zero(1), zero(2), zero(3)]
Process = subprocess.CompletedProcess[str]


class Spoil(Callback):
    """Spoils rank 1 where the environment says so: a batch, or the masks between two updates."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        assert is_sharded(pl_module) == (type(trainer.strategy).__name__ == "ShardedStrategy")
        wanted = os.environ.get("UPOP_TEST_SPOIL") == "batch" and trainer.global_rank == 1
        if wanted and trainer.current_epoch == 0 and batch_idx == 2:
            batch["pixel_values"].fill_(torch.nan)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if os.environ.get("UPOP_TEST_SPOIL") == "masks" and trainer.global_rank == 1:
            for search in [found for found in trainer.callbacks if hasattr(found, "_masks")]:
                values = search._masks.values()
                name = min(values)
                search._masks.write_({name: values[name] * 0.999})


class Watched(Callback):
    """Looks whether engines that have ended are gone when the next begins, and in what autocast a step computes."""

    engines: ClassVar[list[Any]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        assert not [engine for engine in self.engines if engine() is not None], "kept through the phase"
        self.engines.append(weakref.ref(trainer.strategy.model))
        if trainer.precision == "bf16-mixed":
            torch.set_autocast_enabled("cuda", True)  # as it is on a GPU, where DeepSpeed looks
            layer = pl_module.model.vision_model.encoder.layers[0].mlp.fc1
            layer.register_forward_hook(lambda module, inputs, output: self.check(output))

    @staticmethod
    def check(output: torch.Tensor) -> None:
        assert output.dtype == torch.bfloat16

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        assert len(forwards()) <= 2, "modules of forward passes that DeepSpeed has not forgotten"

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        torch.set_autocast_enabled("cuda", False)


class Unpatched(Callback):
    """Looks whether a phase begins with torch's own linear layer."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        assert torch.nn.functional.linear is LINEAR


def settings(checkpoint: Path, run_dir: Path, **model: Any) -> dict[str, Any]:
    """One process, few steps."""
    config = tiny_settings(checkpoint, run_dir, **model)
    config["data"]["init_args"]["train_scenes"] = 12
    config["trainer"]["callbacks"].append({"class_path": "tests.runs.test_sharded.Spoil"})
    return config


def sharded(config: dict[str, Any], run_dir: Path, strategy: Any = FSDP2) -> dict[str, Any]:
    """The same run, sharded over two processes."""
    config = over_two_ranks(config, run_dir)
    config["trainer"]["strategy"] = strategy
    return config


@pytest.fixture(scope="module")
def one_run(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The configuration of a run in one process, which is done."""
    folder = tmp_path_factory.mktemp("one")
    config = settings(checkpoint, folder / "one", contrast="queue", queue_size=24, momentum=0.9)
    fit_here(config)
    return config


@pytest.fixture(scope="module")
def queue_runs(
    one_run: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[dict[str, Any], Path, Process]:
    """The configuration over two ranks, the directory of the same run in one process, and how the former went."""
    both = sharded(one_run, tmp_path_factory.mktemp("sharded") / "two", request.param)
    return both, Path(one_run["run_dir"]), command("fit", both)


@pytest.mark.parametrize("queue_runs", ALL, indirect=True)
def test_two_sharded_ranks_leave_what_one_process_leaves(queue_runs: tuple[dict[str, Any], Path, Process]) -> None:
    config, one, result = queue_runs
    two = Path(config["run_dir"])
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout.count("compressed model") == 1, "the summary is printed once"
    assert_same(one, two, (*WEIGHTS, CARRIED))
    states = [json.loads((run / "state.json").read_text())["evaluations"] for run in (one, two)]
    assert states[0].keys() == states[1].keys() == {"dense", "cut", "retrained"}
    assert states[0]["dense"] == states[1]["dense"]
    model, _ = upop.load(two / "compressed")
    plan = Plan.load(two / "plan.json")
    assert plan.facts["params"]["left"] == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("queue_runs", ALL, indirect=True)
def test_a_sharded_run_that_is_killed_goes_on_to_the_same_bytes(
    queue_runs: tuple[dict[str, Any], Path, Process], tmp_path: Path
) -> None:
    config, _, _ = queue_runs
    assert_killed_goes_on(config, tmp_path / "broken")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [EXPLICIT, zero(1), zero(2), zero(3)])
def test_a_sharded_run_clips_accumulates_recomputes_and_ranks_by_weights(
    checkpoint: Path, tmp_path: Path, strategy: Any
) -> None:
    config = settings(checkpoint, tmp_path / "one", contrast="queue", queue_size=24, momentum=0.9)
    config["data"]["init_args"]["train_scenes"] = 24
    config["finetune"] = {"epochs": 1, "lr": 1e-3}
    config["search"]["policy"] = "magnitude"
    for phase in ("finetune", "search", "retrain"):
        config[phase]["gradient_checkpointing"] = True
    config["trainer"] |= {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05}
    two = sharded(config, tmp_path / "two", strategy)
    if isinstance(strategy, dict) and "Zero" in strategy["class_path"]:
        names = [f"tests.runs.test_sharded.{callback.__name__}" for callback in (Watched, Unpatched)]
        two["trainer"]["callbacks"] += [{"class_path": name} for name in names]
    result = command("fit", two)
    assert result.returncode == 0, result.stderr
    fit_here(config)
    plans = [json.loads((tmp_path / run / "plan.json").read_text())["keep"] for run in ("one", "two")]
    assert plans[0] == plans[1]
    for file in ("finetune/model/model.safetensors", *WEIGHTS):
        expected, found = (load_file(tmp_path / run / file) for run in ("one", "two"))
        for name, value in expected.items():
            if not name.endswith("k_proj.bias"):  # its gradient is rounding noise
                close(found[name], value, f"{file}: {name}")


@pytest.mark.slow
def test_one_process_shards_with_itself(checkpoint: Path, tmp_path: Path) -> None:
    config = settings(checkpoint, tmp_path / "one", contrast="queue", queue_size=24)
    alone = config | {"run_dir": str(tmp_path / "alone"), "trainer": config["trainer"] | {"strategy": "fsdp2"}}
    result = command("fit", alone)
    assert result.returncode == 0, result.stderr
    one = fit_here(config)
    for name in ("plan.json", CARRIED, *WEIGHTS):
        assert (tmp_path / "alone" / name).read_bytes() == (one / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [FSDP2, zero(3)])
@pytest.mark.parametrize("name", ["siglip", "dual_encoder"])
def test_other_dual_encoders_train_sharded_in_bf16(tmp_path: Path, name: str, strategy: Any) -> None:
    config = sharded(settings(other_checkpoint(tmp_path / name, name), tmp_path / "one"), tmp_path / "two", strategy)
    config["trainer"]["precision"] = "bf16-mixed"
    if name == "siglip" and strategy != FSDP2:
        config["trainer"]["callbacks"].append({"class_path": "tests.runs.test_sharded.Watched"})
    result = command("search", config)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "two/plan.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", FSDP2, zero(2)])
def test_masks_that_drift_on_one_rank_end_the_run_on_all(checkpoint: Path, tmp_path: Path, strategy: Any) -> None:
    config = sharded(settings(checkpoint, tmp_path / "one"), tmp_path / "two", strategy)
    result = command("search", config, UPOP_TEST_SPOIL="masks")
    assert result.returncode == 2
    assert "at step 2 the masks of ranks [1] differ from those of the other 1" in result.stderr
    assert not (tmp_path / "two/plan.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ALL)
def test_a_sharded_step_that_is_not_finite_is_left_out_on_all_ranks(
    checkpoint: Path, tmp_path: Path, strategy: Any
) -> None:
    config = sharded(settings(checkpoint, tmp_path / "one"), tmp_path / "two", strategy)
    config["data"]["init_args"]["train_scenes"] = 24
    result = command("search", config, UPOP_TEST_SPOIL="batch")
    assert "(1 so far), weights unchanged" in result.stderr
    plan = Plan.load(tmp_path / "two/plan.json")
    assert plan.facts["steps_left_out"] == 1
    weights = load_file(tmp_path / "two" / WEIGHTS[0])
    assert all(torch.isfinite(value).all() for value in weights.values())


@pytest.fixture(scope="module")
def blip_runs(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A directory with the searches of BLIP's tasks, in ``<task>/one`` and, sharded, ``<task>/two``."""
    return search_twice(tmp_path_factory.mktemp("blip"), partial(sharded, strategy=request.param))


@pytest.mark.slow
@pytest.mark.parametrize("blip_runs", [FSDP2, zero(3)], indirect=True)
@pytest.mark.parametrize("task", TASKS)
def test_sharded_ranks_search_a_blip_as_one_process_does(blip_runs: Path, task: str) -> None:
    one, two = both(blip_runs, task)
    assert_same_search(one, two)
    weights = [load_file(run / WEIGHTS[0]) for run in (one, two)]
    assert weights[0].keys() == weights[1].keys()


def test_a_sharded_run_that_cannot_be_is_refused_before_a_model_is_read(tmp_path: Path) -> None:
    config = sharded(settings(Path("/nowhere"), tmp_path / "one", compile=True), tmp_path / "two")
    with pytest.raises(ValueError, match=r"'fsdp2', which gathers weights inside the towers .* set compile to false"):
        check(recipe(config, tmp_path / "config.yaml"))
