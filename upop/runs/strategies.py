"""Strategies of Lightning that serve all phases of a run, and what is said of those that do not.

``ddp`` keeps a whole model on every rank. ``fsdp2`` shares out weights, gradients and optimizer states while a phase
trains, and so does DeepSpeed's ZeRO at its stage 3, at stage 2 and 1 less of them; masks, scores and a distillation
teacher stay whole on every rank. When the phase is over its weights are gathered once, and the cut and every evaluation
work on a whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
    StrategyRegistry,
)

from upop.messages import closest
from upop.runs.zero import ZeroStrategy
from upop.runs.zero_settings import check_deepspeed, check_zero
from upop.shards import engaged, whole
from upop.tasks import Task
from upop.tasks.sharding import is_sharded

FSDP2 = "fsdp2"
ZERO = {"deepspeed": 2, "deepspeed_stage_1": 1, "deepspeed_stage_2": 2, "deepspeed_stage_3": 3}
"""Names of the strategies that are DeepSpeed's, and the stage of ZeRO that each is."""
SERVE = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true", FSDP2, *ZERO)
"""Names of the strategies that serve."""
ENDS = "starts processes that end with each phase, and the masks and the plan with them; give ddp"
REFUSED = {
    "fsdp": "flattens the weights whose rows masks scale; give fsdp2, which leaves each weight as it is, or ddp",
    "offload": "keeps weights or optimizer states in the memory of the host, which has not been tried; give "
    "deepspeed_stage_3, or fsdp2",
    "spawn": ENDS,
    "fork": ENDS,
    "notebook": ENDS,
    "xla": "has not been tried; give ddp on GPUs",
}
"""Why the others do not serve and what does, by a part of their names."""


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all processes of a run, with checkpoints that are one file.

    Args:
        data_parallel_size: Processes that share the weights; ``auto`` takes all.
        **settings: ``process_group_backend`` and ``timeout``, as of Lightning's strategy.
    """

    def __init__(self, data_parallel_size: int | Literal["auto"] = "auto", **settings: Any) -> None:  # noqa: ANN401
        super().__init__(data_parallel_size, 1, save_distributed_checkpoint=False, **settings)

    @property
    def shards(self) -> int:
        """Processes that share the weights."""
        size = self._data_parallel_size
        return self.num_nodes * self.num_processes if size == "auto" else size

    def setup_environment(self) -> None:
        """As Lightning's, but over all processes by default, not over the nodes."""
        self._data_parallel_size = self.shards
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: _PATH, weights_only: bool | None = None) -> dict[str, Any]:
        """As Lightning's, but never with code in it: Lightning does not hand on what the run asks for."""
        return super().load_checkpoint(checkpoint_path, weights_only=True)


StrategyRegistry.register(FSDP2, ShardedStrategy, description="FSDP2 over all processes", override=True)


def check_strategy(settings: Mapping[str, Any], compiles: bool = False) -> None:
    """Refuse a strategy, or what it is combined with, that cannot serve every phase.

    Args:
        settings: Keyword arguments of the Trainer, as the recipe gives them.
        compiles: Whether the task compiles its towers.

    Raises:
        ValueError: With the reason and the nearest that can.
    """
    strategy = settings.get("strategy") or "auto"
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    if _is_zero(strategy):
        check_deepspeed()
    if isinstance(strategy, ModelParallelStrategy):
        _check_sizes(strategy)
    elif isinstance(strategy, DeepSpeedStrategy):
        check_zero(strategy)
    elif not _serves(strategy):
        raise ValueError(f"trainer.strategy is {name!r}{_why_not(strategy, name)}")
    if not shards(strategy):
        return
    if str(settings.get("precision") or "").startswith("16"):
        raise ValueError(
            f"trainer.precision is {settings['precision']!r}, whose loss scaling does not serve sharded gradients; "
            f"give bf16-mixed, or strategy ddp instead of {name!r}"
        )
    if compiles:
        raise ValueError(
            f"trainer.strategy is {name!r}, which gathers weights inside the towers that model.init_args.compile wants "
            "compiled; set compile to false, or give ddp"
        )
    if _is_zero(strategy) and settings.get("gradient_clip_algorithm") == "value":
        raise ValueError(
            f"trainer.gradient_clip_algorithm is 'value', but DeepSpeed clips norms; leave it out, or give fsdp2 "
            f"instead of {name!r}"
        )


def _is_zero(strategy: str | Strategy) -> bool:
    """Whether a strategy is DeepSpeed's."""
    return strategy in ZERO or isinstance(strategy, DeepSpeedStrategy)


def _serves(strategy: str | Strategy) -> bool:
    """Whether a strategy other than Lightning's sharded one is among those that serve."""
    if isinstance(strategy, str):
        return strategy in SERVE
    if isinstance(strategy, DDPStrategy):
        return strategy._start_method == "popen"
    return isinstance(strategy, SingleDeviceStrategy)


def _why_not(strategy: str | Strategy, name: str) -> str:
    """Why a strategy does not serve, and what does."""
    known = not isinstance(strategy, str) or strategy in StrategyRegistry
    kind = f"{name} {getattr(strategy, '_start_method', '')}".lower()
    for part, reason in REFUSED.items():
        if known and part in kind:
            return f", which {reason}"
    return f"; give one of {list(SERVE)}{closest(name, SERVE)}"


def _check_sizes(strategy: ModelParallelStrategy) -> None:
    """Refuse what splits single weights, or writes checkpoints of many files."""
    advice = "or give trainer.strategy: fsdp2"
    if strategy._tensor_parallel_size != 1:
        raise ValueError(
            f"tensor_parallel_size of trainer.strategy is {strategy._tensor_parallel_size!r}, which splits the "
            f"computation of single units; set it to 1, {advice}"
        )
    if strategy._save_distributed_checkpoint:
        raise ValueError(
            "save_distributed_checkpoint of trainer.strategy is True, but a run goes on from checkpoints that are one "
            f"file; set it to false, {advice}"
        )


def check_placement(trainer: Trainer) -> None:
    """Refuse a number of shards that is not the number of processes, and devices that a strategy does not run on.

    Raises:
        ValueError: If it is not, or does not.
    """
    strategy = trainer.strategy
    if isinstance(strategy, ShardedStrategy) and strategy.shards != trainer.world_size:
        raise ValueError(
            f"data_parallel_size of trainer.strategy is {strategy.shards}, but there are {trainer.world_size} "
            "processes (trainer.devices * trainer.num_nodes); give the same number, or trainer.strategy: fsdp2"
        )
    if isinstance(strategy, ZeroStrategy) and not isinstance(trainer.accelerator, strategy.accelerators):
        raise ValueError(
            f"trainer.strategy is DeepSpeed's, which runs on NVIDIA GPUs, but trainer.accelerator is "
            f"{type(trainer.accelerator).__name__}; give fsdp2 or ddp"
        )
    places = [device.index for device in getattr(strategy, "parallel_devices", None) or ()]
    if isinstance(strategy, ZeroStrategy) and any(places) and places != list(range(len(places))):
        raise ValueError(
            f"trainer.devices is {places}, but DeepSpeed takes the first GPUs that it sees; give trainer.devices: "
            f"{len(places)} and set CUDA_VISIBLE_DEVICES={','.join(map(str, places))}"
        )


def shards(strategy: str | Strategy | None) -> bool:
    """Whether a strategy shares out gradients, weights or what the optimizer keeps of them."""
    return strategy == FSDP2 or strategy in ZERO or isinstance(strategy, (ModelParallelStrategy, DeepSpeedStrategy))


def for_training(strategy: str | Strategy) -> str | Strategy:
    """The strategy that trains for one that a recipe gives: those that shard are upop's own."""
    if isinstance(strategy, str):
        return ZeroStrategy(ZERO[strategy]) if strategy in ZERO else strategy
    if isinstance(strategy, DeepSpeedStrategy) and not isinstance(strategy, ZeroStrategy):
        return ZeroStrategy.of(strategy)
    if isinstance(strategy, ModelParallelStrategy) and not isinstance(strategy, ShardedStrategy):
        return ShardedStrategy(
            strategy._data_parallel_size,
            process_group_backend=strategy._process_group_backend,
            timeout=strategy._timeout,
        )
    return strategy


def for_evaluation(strategy: str | Strategy | None) -> str | Strategy | None:
    """The strategy that evaluates for one that a recipe gives: a whole model on each rank."""
    return "auto" if shards(strategy) else strategy


def gathered(task: Task, fresh: Callable[[], Task]) -> Task:
    """``task``, or where its weights were shared out or tied to DeepSpeed a new one with all of them, on every rank.

    Args:
        task: A task that has been trained, without masks.
        fresh: Makes the same task with a whole model; every weight of it is written over.
    """
    if not is_sharded(task) and not any(map(engaged, task.parameters())):
        return task
    state = {name: whole(value) for name, value in task.state_dict(keep_vars=True).items()}
    made = fresh()
    made.load_state_dict(state)
    return made
