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
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import Accelerator, CUDAAccelerator
from lightning.pytorch.plugins.precision import DeepSpeedPrecision, Precision
from lightning.pytorch.strategies import DeepSpeedStrategy, Strategy
from torch import Tensor, nn
from torch.optim import Optimizer

from upop.runs.zero_engine import forwards, gather_, let_go, write_, write_trained_
from upop.runs.zero_precision import ZeroPrecision
from upop.runs.zero_settings import stage_of
from upop.shards import gathered, partitioned, summoned

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each weight, by torch's names."""
BUCKET = 50_000_000
"""Numbers that are sent at a time; Lightning's 200 million are a gigabyte of memory on each GPU."""


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
            self._depth = len(forwards())
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
            gather_(self._gathered)

    def on_validation_end(self) -> None:
        """Share the weights out again, as before."""
        if self.stage == 3:
            for parameter in self._gathered:
                parameter.partition(param_list=[parameter])
            self._engine_optimizer.parameter_offload.setup_zero_stage3_hooks()
            self.forget_forwards()

    def forget_forwards(self) -> None:
        """Have DeepSpeed forget modules that have begun a forward pass and not ended it, as recomputed ones do."""
        del forwards()[self._depth :]

    @staticmethod
    @torch.no_grad()
    def write_(parameter: Tensor, value: Tensor) -> None:
        """Write a weight or buffer, and what the optimizer holds of it.

        Args:
            parameter: As DeepSpeed holds it.
            value: Whole, the same on every rank.
        """
        write_(parameter, value)

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
            gather_(optimizer.persistent_parameters)
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
                write_(value, state[name])

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
                write_trained_(parameter, saved["state"][index][name], name)

    def teardown(self) -> None:
        """As Lightning's; and end the engine, or it would keep its memory through the phases to come."""
        engine: Any = self.model
        super().teardown()
        if hasattr(engine, "destroy"):
            engine.destroy()
            self.model: Any = self.lightning_module
            self.optimizers: list[Any] = []
            self._groups, self._scalars, self._gathered = [], [], []
            let_go()

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
