"""What of DeepSpeed's settings serves every phase, and what is said of the rest before a model is read."""

from __future__ import annotations

import importlib.util
import os

from lightning.pytorch.strategies import DeepSpeedStrategy

STAGES = (1, 2, 3)
SETTINGS = (
    "zero_optimization", "zero_allow_untested_optimizer", "activation_checkpointing", "aio", "steps_per_print",
    "train_micro_batch_size_per_gpu", "wall_clock_breakdown", "memory_breakdown", "comms_logger", "dump_state",
)  # fmt: skip
"""Keys of a DeepSpeed configuration that serve; the others follow from the recipe, or have not been tried."""
ZERO_SETTINGS = (
    "stage", "allgather_partitions", "allgather_bucket_size", "overlap_comm", "reduce_scatter", "reduce_bucket_size",
    "contiguous_gradients", "sub_group_size", "stage3_max_live_parameters", "stage3_max_reuse_distance",
    "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold", "stage3_model_persistence_threshold",
)  # fmt: skip
"""Keys of its section ``zero_optimization`` that serve."""


def check_deepspeed() -> None:
    """Check that DeepSpeed is there, and configured by the recipe alone.

    Raises:
        ValueError: If it is not.
    """
    try:
        found = importlib.util.find_spec("deepspeed")
    except ValueError:  # of a module without a spec
        found = None
    if found is None:
        raise ValueError(
            "trainer.strategy is DeepSpeed's, which is not installed; pip install 'upop[deepspeed]', or give fsdp2"
        )
    variable = DeepSpeedStrategy.DEEPSPEED_ENV_VAR
    if os.environ.get(variable):
        raise ValueError(
            f"the environment variable {variable} is set, whose file would take the place of the recipe's settings; "
            "unset it"
        )


def check_zero(strategy: DeepSpeedStrategy) -> None:
    """Refuse what does not serve of a strategy that a recipe gives with settings of its own.

    Raises:
        ValueError: With what to do instead.
    """
    config = strategy.config
    zero = config.get("zero_optimization") if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(zero, dict) or zero.get("stage") not in STAGES:
        stage = zero.get("stage") if isinstance(zero, dict) else zero
        raise ValueError(f"trainer.strategy is ZeRO stage {stage!r}; give stage 1, 2 or 3, or ddp")
    for found, known, where in ((zero, ZERO_SETTINGS, "zero_optimization."), (config, SETTINGS, "")):
        for key in sorted(found.keys() - set(known)):
            raise ValueError(
                f"the DeepSpeed configuration of trainer.strategy has '{where}{key}', which follows from other keys of "
                f"the recipe or has not been tried with masks; take it out. What serves: {', '.join(known)}"
            )


def stage_of(strategy: DeepSpeedStrategy) -> int:
    """ZeRO's stage that a strategy of Lightning's asks for; 0 for none."""
    config = strategy.config if isinstance(strategy.config, dict) else {}
    return int(config.get("zero_optimization", {}).get("stage", 0))
