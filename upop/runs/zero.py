"""DeepSpeed's ZeRO as a strategy that serves every phase: its engine, with upop's precision, guards and checkpoints.

Stage 1 shares out the optimizer states over the ranks, stage 2 the gradients, too, stage 3 the weights, too. Where
Lightning's strategy does otherwise:

- Weights stay in fp32 with ``bf16-mixed``, which is autocast as in all of upop; DeepSpeed's own would keep bf16 weights
  in the model, and masks on them would be rounded.
- A checkpoint is one file of tensors and plain values, in the form that one process writes; nothing in it is executed.
  DeepSpeed's own are a directory of pickles.
- A loss is divided by the number of accumulated batches once, not by Lightning and by DeepSpeed.
- A step can be left out: see :meth:`ZeroStrategy.drop_gradients`.
"""

from __future__ import annotations

import copy
import gc
import importlib.util
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.accelerators import Accelerator, CUDAAccelerator
from lightning.pytorch.plugins.precision import DeepSpeedPrecision, Precision
from lightning.pytorch.strategies import DeepSpeedStrategy, Strategy
from torch import Tensor, nn
from torch.optim import Optimizer

from upop.shards import gathered, partitioned, summoned

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each weight, by torch's names."""
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
BUCKET = 50_000_000
"""Numbers that are sent at a time; Lightning's 200 million are a gigabyte of memory on each GPU."""


class ZeroPrecision(DeepSpeedPrecision):
    """fp32 weights, and autocast where it is asked for."""

    def convert_input(self, data: Any) -> Any:  # noqa: ANN401 (a batch)
        """Leave it; autocast casts what it has to."""
        return data

    def forward_context(self) -> AbstractContextManager[Any]:
        """Autocast with ``bf16-mixed``."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.autocast(device, torch.bfloat16) if self.precision == "bf16-mixed" else nullcontext()

    def backward(
        self,
        tensor: Tensor,
        model: LightningModule,
        optimizer: Any,  # noqa: ANN401 (DeepSpeed's)
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Of a loss that Lightning has divided by the number of accumulated batches already."""
        engine = model.trainer.model
        engine.set_gradient_accumulation_boundary(not model.trainer.fit_loop._should_accumulate())
        engine.backward(tensor, *args, scale_wrt_gas=False, **kwargs)
        model.trainer.strategy.forget_forwards()

    def optimizer_step(
        self,
        optimizer: Any,  # noqa: ANN401 (DeepSpeed's)
        model: LightningModule,
        closure: Callable[[], Any],
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """As Lightning's, but for a step whose gradients were dropped."""
        result = closure()
        self._after_closure(model, optimizer)
        strategy: ZeroStrategy = model.trainer.strategy
        if strategy.dropped:
            strategy.dropped = False
        else:
            model.trainer.model.step(**kwargs)
        return result


class ZeroStrategy(DeepSpeedStrategy):
    """ZeRO stage 1, 2 or 3 on CUDA.

    Args:
        stage: What is shared out: 1 optimizer states, 2 gradients, too, 3 weights, too.
        **settings: Of Lightning's strategy, such as ``reduce_bucket_size``, ``process_group_backend`` and ``timeout``.

    Attributes:
        dropped: Whether the step that is about to be taken is left out.
    """

    accelerators: ClassVar[tuple[type[Accelerator], ...]] = (CUDAAccelerator,)
    """Accelerators that it runs on."""

    def __init__(self, stage: int = 2, **settings: Any) -> None:  # noqa: ANN401
        buckets = {"reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET}
        super().__init__(stage=stage, **buckets | settings)
        assert isinstance(self.config, dict)
        # by default DeepSpeed keeps whole what comes again within a billion numbers: all of such a model
        self.config["zero_optimization"].setdefault("stage3_max_reuse_distance", 0)
        self.dropped = False
        self._groups: list[list[nn.Parameter]] = []
        self._scalars: list[nn.Parameter] = []
        self._gathered: list[Any] = []
        self._depth = 0

    @classmethod
    def of(cls, strategy: DeepSpeedStrategy) -> ZeroStrategy:
        """The same as one of Lightning's that has passed :func:`check_zero`."""
        made = cls(config=copy.deepcopy(strategy.config))
        made._process_group_backend, made._timeout = strategy._process_group_backend, strategy._timeout
        return made

    @property
    def stage(self) -> int:
        """What is shared out."""
        return stage_of(self)

    @property
    def handles_gradient_accumulation(self) -> bool:
        """Lightning counts batches, as with every other strategy: its hooks come once per optimizer step."""
        return False

    @property
    def precision_plugin(self) -> Precision:
        """Of upop, for the precision that Lightning's connector has chosen DeepSpeed's own for."""
        return super().precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, plugin: Precision | None) -> None:
        self._precision_plugin = ZeroPrecision(plugin.precision) if isinstance(plugin, DeepSpeedPrecision) else plugin

    def _format_config(self) -> None:
        """As Lightning's, without DeepSpeed's precisions."""
        assert isinstance(self.config, dict)
        self._format_batch_size_and_grad_accum_config()

    def setup(self, trainer: Trainer) -> None:
        """As Lightning's, when the engine of the phase before has gone."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        super().setup(trainer)

    def init_deepspeed(self) -> None:
        """As Lightning's; norms are clipped by the engine, as the recipe says."""
        if self.lightning_module is not None and self.lightning_module.trainer.training:
            self._initialize_deepspeed_train(self.model)
            self._begin_moments()
            self._depth = len(_stack())
            if self.precision_plugin.precision == "bf16-mixed":  # or it would switch Lightning's autocast off
                self.model.torch_autocast_enabled = lambda: True
                self.model.torch_autocast_dtype = lambda: torch.bfloat16
        else:
            self._initialize_deepspeed_inference(self.model)

    def _setup_model_and_optimizer(self, model: nn.Module, *arguments: Any) -> Any:  # noqa: ANN401 (an engine, ...)
        """As Lightning's, with scalars as vectors of one number: DeepSpeed sends them around as bytes."""
        self._scalars = [parameter for parameter in model.parameters() if parameter.dim() == 0]
        for parameter in self._scalars:
            parameter.data = parameter.data.view(1)
        return super()._setup_model_and_optimizer(model, *arguments)

    def _init_optimizers(self) -> Any:  # noqa: ANN401 (Lightning's)
        optimizer, scheduler = super()._init_optimizers()
        self._groups = [list(group["params"]) for group in optimizer.param_groups]
        return optimizer, scheduler

    @property
    def _engine_optimizer(self) -> Any:  # noqa: ANN401 (DeepSpeed's)
        """DeepSpeed's optimizer; its ``optimizer`` is the one that the task has configured, over flat shares."""
        return self.optimizers[0]

    def block_backward_sync(self) -> AbstractContextManager[None]:
        """Nothing to block: the engine knows which batch ends a step, see :meth:`ZeroPrecision.backward`."""
        return nullcontext()

    def on_validation_start(self) -> None:
        """Make the model whole where weights are shared out: not every rank has as many batches to evaluate.

        DeepSpeed's hooks go as long, which would gather and share out weights with every use.
        """
        if self.stage == 3:
            offload = self._engine_optimizer.parameter_offload
            offload._remove_module_hooks()
            offload.forward_hooks.clear()
            offload.backward_hooks.clear()
            self._gathered = [p for p in self.lightning_module.model.parameters() if partitioned(p) and not gathered(p)]
            _gather(self._gathered)

    def on_validation_end(self) -> None:
        """Share the weights out again, as before."""
        if self.stage == 3:
            for parameter in self._gathered:
                parameter.partition(param_list=[parameter])
            self._engine_optimizer.parameter_offload.setup_zero_stage3_hooks()
            self.forget_forwards()

    def forget_forwards(self) -> None:
        """Have DeepSpeed forget modules that have begun a forward pass and not ended it, as recomputed ones do."""
        del _stack()[self._depth :]

    @staticmethod
    @torch.no_grad()
    def write_(parameter: Tensor, value: Tensor) -> None:
        """Write a weight or buffer, and what the optimizer holds of it.

        Args:
            parameter: As DeepSpeed holds it.
            value: Whole, the same on every rank.
        """
        _write_(parameter, value)

    def gradients(self) -> list[Tensor]:
        """This rank's share of the gradients, averaged over the ranks, between backward pass and step."""
        groups = self._engine_optimizer.averaged_gradients.values()
        return [gradient for group in groups if group is not None for gradient in group if gradient is not None]

    def drop_gradients(self) -> None:
        """Leave out the step that is about to be taken."""
        optimizer = self._engine_optimizer
        optimizer.zero_grad(set_to_none=True)
        if self.stage == 3:
            optimizer.averaged_gradients = {}
            optimizer._partition_all_parameters()
            _gather(optimizer.persistent_parameters)
        else:  # as DeepSpeed does where fp16 overflows
            for group in optimizer.averaged_gradients:
                optimizer.averaged_gradients[group] = optimizer.all_grad_tensors[group] = None
            optimizer.micro_step_id = -1
        self.dropped = True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """All weights and buffers, whole, on the CPU of rank 0; every rank has to ask for them."""
        assert self.lightning_module is not None
        found = {}
        for name, value in self.lightning_module.state_dict(keep_vars=True).items():
            with summoned(value) as whole:
                found[name] = self._kept(whole, value)
        return found

    def _kept(self, value: Tensor, parameter: Tensor) -> Tensor | None:
        """On rank 0 a copy of what belongs to a parameter or buffer, in the shape that it had before DeepSpeed."""
        if not self.is_global_zero:
            return None
        copied = value.cpu().clone()
        return copied.view(()) if any(parameter is scalar for scalar in self._scalars) else copied

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """What the optimizer of one process would give, on rank 0; every rank has to ask for it."""
        inner = self._engine_optimizer.optimizer
        taken = next(iter(inner.state.values()))["step"].cpu()
        numbers = iter(range(sum(map(len, self._groups))))
        groups, states = [], dict[int, dict[str, Tensor | None]]()
        for group, parameters in zip(inner.param_groups, self._groups, strict=True):
            indices = [next(numbers) for _ in parameters]
            groups.append({key: value for key, value in group.items() if key != "params"} | {"params": indices})
            for index, parameter in zip(indices, parameters, strict=True):
                moments = {name: self._kept(self._moment(parameter, name), parameter) for name in MOMENTS}
                states[index] = {"step": taken.clone(), **moments}
        return {"state": states, "param_groups": groups}

    @staticmethod
    def _moment(parameter: nn.Parameter, name: str) -> Tensor:
        from deepspeed.utils import safe_get_full_optimizer_state

        found: Tensor = safe_get_full_optimizer_state(parameter, name)
        return found

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: _PATH, storage_options: Any = None) -> None:  # noqa: ANN401
        """One file, written by rank 0."""
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: _PATH, weights_only: bool | None = None) -> dict[str, Any]:
        """One file, read by every rank, never with code in it."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only=True)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning hands on what it has read."""
        return True

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Put weights and buffers back, and the shares that the optimizer trains."""
        assert self.lightning_module is not None
        state, found = checkpoint["state_dict"], self.lightning_module.state_dict(keep_vars=True)
        if strict and state.keys() != found.keys():
            raise RuntimeError(f"the checkpoint and the task differ in {sorted(state.keys() ^ found.keys())[:3]}")
        for name, value in found.items():
            if name in state:
                _write_(value, state[name])

    @torch.no_grad()
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Put each rank's share of the moments back, and the settings."""
        (saved,) = checkpoint["optimizer_states"]
        inner = self._engine_optimizer.optimizer
        for group, kept in zip(inner.param_groups, saved["param_groups"], strict=True):
            group.update({key: value for key, value in kept.items() if key != "params"})
        if not saved["state"]:
            return
        for state in inner.state.values():
            state["step"].copy_(saved["state"][0]["step"])
        for index, parameter in enumerate(parameter for group in self._groups for parameter in group):
            for name in MOMENTS:
                _write_trained_(parameter, saved["state"][index][name], name)

    def teardown(self) -> None:
        """As Lightning's; and end the engine, or it would keep its memory through the phases to come."""
        engine: Any = self.model
        super().teardown()
        if hasattr(engine, "destroy"):
            engine.destroy()
            self.model: Any = self.lightning_module
            self.optimizers: list[Any] = []
            self._groups, self._scalars, self._gathered = [], [], []
            _let_go()

    def _begin_moments(self) -> None:
        """Have the optimizer hold the moments of its flat shares, 0 as they begin, before its first step.

        It would make them at its first step, but of stages 1 and 2 those of the first group of parameters only would be
        found again.
        """
        optimizer = self._engine_optimizer
        flat = optimizer.fp32_partitioned_groups_flat if self.stage == 3 else optimizer.single_partition_of_fp32_groups
        for share in flat:
            moments = {name: torch.zeros_like(share) for name in MOMENTS}
            optimizer.optimizer.state[share] = {"step": torch.tensor(0.0), **moments}
        if self.stage != 3:
            optimizer._lazy_init_hp_params_optimizer_state()


def _stack() -> list[Any]:
    """The modules whose forward passes DeepSpeed believes to be inside of, the outermost first."""
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK

    found: list[Any] = FWD_MODULE_STACK
    return found


def _let_go() -> None:
    """Undo what stage 3 leaves in the process: modules in its caches, and another linear layer in torch."""
    from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses as Patches
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator as Coordinator

    _stack().clear()
    cached = vars(Coordinator)["_PartitionedParameterCoordinator__params_to_release"]
    for cell in cached.__closure__ or ():
        if hasattr(cell.cell_contents, "cache_clear"):
            cell.cell_contents.cache_clear()
    torch.nn.functional.linear = getattr(Patches, "linear_bk", torch.nn.functional.linear)


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


def _gather(parameters: list[Any]) -> None:
    """Make parameters whole that ZeRO stage 3 has shared out."""
    if parameters:
        parameters[0].all_gather(param_list=parameters)


def _shape(tensor: Any) -> torch.Size:  # noqa: ANN401 (with DeepSpeed's attributes)
    """Shape of a weight or buffer when it is whole."""
    return torch.Size(tensor.ds_shape) if partitioned(tensor) else tensor.shape


def _write_(target: Any, value: Tensor) -> None:  # noqa: ANN401 (with DeepSpeed's attributes)
    """Write a weight or buffer, and what the optimizer holds of it."""
    value = value.to(target.device).view(_shape(target))
    if partitioned(target):
        target.ds_tensor.copy_(_share(target, value))
    if not partitioned(target) or gathered(target):
        target.data.copy_(value)
    if target.requires_grad:
        _write_trained_(target, value)


def _write_trained_(parameter: Any, value: Tensor, moment: str | None = None) -> None:  # noqa: ANN401
    """Write this rank's share of what the optimizer trains, or of a moment of it."""
    from deepspeed import utils

    value = value.to(parameter.device)
    share = _share(parameter, value) if partitioned(parameter) else value
    where = "local" if partitioned(parameter) else "full"
    if moment is None:
        getattr(utils, f"safe_set_{where}_fp32_param")(parameter, share)
    else:
        getattr(utils, f"safe_set_{where}_optimizer_state")(parameter, share, moment)


def _share(parameter: Any, value: Tensor) -> Tensor:  # noqa: ANN401 (with DeepSpeed's attributes)
    """This rank's share of ``value``, flat; that of the last ranks is padded with zeros."""
    rank, size = torch.distributed.get_rank(), parameter.ds_tensor.numel()
    piece = value.flatten()[rank * size : (rank + 1) * size]
    return nn.functional.pad(piece, (0, size - piece.numel()))
