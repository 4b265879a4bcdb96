"""What every task shares: it adopts a model, may have a dense teacher, and builds optimizer and schedule of a phase."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from upop.shards import moving
from upop.tasks.sharding import average_replicated_, clip_, gather_, is_sharded, release_, shard_


@dataclass(frozen=True)
class Training:
    """How one phase trains.

    Attributes:
        epochs: Passes over the training data; 0 leaves the phase out where that is possible.
        lr: Peak learning rate of AdamW.
        weight_decay: Weight decay of matrices; biases, norms and scalars get none (the authors decay them too).
        betas: Decay rates of AdamW's two moments.
        lr_schedule: ``cosine`` falls from ``lr`` to 0 over the phase, step by step (the authors': epoch by epoch);
            ``constant`` stays.
        warmup_steps: Optimizer steps over which the learning rate rises from 0.
        gradient_checkpointing: Compute the insides of each transformer block anew in the backward pass instead of
            keeping them: the memory of activations falls to that of one block and the blocks' ends, a step takes about
            a third longer, and the result is the same.
    """

    epochs: int = 1
    lr: float = 1e-5
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 0
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise ValueError(f"epochs is {self.epochs!r}; give 0 or more")
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr!r}; give a number above 0")

    def factor(self, step: int, steps: int) -> float:
        """Learning rate at optimizer step ``step`` (from 0) of ``steps``, as a share of ``lr``."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.lr_schedule == "constant":
            return 1.0
        progress = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


@dataclass(frozen=True)
class Distillation:
    """Weights of what the student learns from the dense model, added to the task loss. 0 = off.

    Attributes:
        logits: Weight of the KL divergence from the teacher's to the student's distribution over what the task
            predicts: the pairs of a batch (retrieval), the next token of an answer or caption, the classes.
        features: Weight of the squared distance between the teacher's and the student's normalised features (retrieval)
            and hidden states of all transformer blocks (BLIP).
    """

    logits: float = 0.0
    features: float = 0.0

    def __post_init__(self) -> None:
        for name in ("logits", "features"):
            if getattr(self, name) < 0:
                raise ValueError(f"distill.{name} is {getattr(self, name)!r}; give 0 (off) or more")

    @property
    def on(self) -> bool:
        """Whether a teacher is needed."""
        return self.logits > 0 or self.features > 0


class Task(LightningModule):
    """Base of all tasks.

    A task is light until :meth:`adopt` gives it a model, so that a configuration can be checked before any weight is
    read. Subclasses define the steps and, where they keep copies of the model, :meth:`pruned_modules`.

    Args:
        checkpoint: Dense model to start from: a Hugging Face directory or hub name.
        from_scratch: Take only the architecture and the processor of ``checkpoint``, with random weights.
        compile: Compile the towers with ``torch.compile``; the first steps take longer.
    """

    def __init__(self, checkpoint: str, from_scratch: bool = False, compile: bool = False) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.from_scratch = from_scratch
        self.compile_towers = compile
        self.model: Any = None
        self.processor: Any = None
        self.training_settings = Training()
        self.distillation = Distillation()
        self._teacher: list[nn.Module] = []  # in a list: no part of the state dict, never trained

    def preflight(self) -> None:
        """Check what the task needs of the machine, so that it fails in the first seconds; most tasks need nothing."""

    def check_data(self, data: Any) -> None:  # noqa: ANN401 (a data module)
        """Refuse settings that these data do not fit, before a model is read; most tasks have none.

        Args:
            data: Data module, checked itself already.

        Raises:
            ValueError: If a setting does not fit.
        """

    def start_from(self, model: nn.Module) -> nn.Module:
        """The model that a run begins to train, of the dense one that ``checkpoint`` holds; for most tasks itself.

        Args:
            model: What the checkpoint holds, on any device.

        Raises:
            ValueError: If none can be made of it.
        """
        return model

    def adopt(self, model: nn.Module, processor: Any) -> None:  # noqa: ANN401 (any Hugging Face processor)
        """Take a model, dense or cut, and its processor."""
        self.model = model.train()
        self.processor = processor

    def learn_from(self, teacher: nn.Module, distillation: Distillation) -> None:
        """Take a dense teacher, frozen, in evaluation mode."""
        self._teacher = [teacher.eval().requires_grad_(False)]
        self.distillation = distillation

    @property
    def teacher(self) -> nn.Module:
        """The dense model that distillation learns from."""
        if not self._teacher:
            raise ValueError("distillation is on, but the task has no teacher; call learn_from first")
        return self._teacher[0]

    def pruned_modules(self) -> list[nn.Module]:
        """Every copy of the model that has to be cut with the same plan, the model itself first."""
        return [self.model]

    def carried(self) -> dict[str, Tensor]:
        """State beside the model that the next phase goes on with, by name."""
        return {}

    def carry(self, state: dict[str, Tensor]) -> None:
        """Take what :meth:`carried` of the phase before gave."""
        if state:
            raise ValueError(f"{type(self).__name__} carries no state, got {sorted(state)[:3]}")

    def configure_model(self) -> None:
        """Share out the weights over the ranks, where the strategy does; the teacher stays whole on each."""
        if self.device_mesh is not None and not is_sharded(self):
            for module in self.pruned_modules():
                shard_(module, self.device_mesh["data_parallel"])

    def check_checkpointing(self) -> None:
        """Refuse a model whose blocks cannot be computed anew in the backward pass.

        Raises:
            ValueError: If it has no such block.
        """
        if not _recomputable(self.model):
            raise ValueError(
                f"gradient_checkpointing is true, but {type(self.model).__name__} has no block that can be computed "
                "anew (a transformers GradientCheckpointingLayer); set finetune., search. and "
                "retrain.gradient_checkpointing to false"
            )

    def on_fit_start(self) -> None:
        """Move the teacher to the device, compile and checkpoint gradients, where asked for."""
        for teacher in self._teacher:
            teacher.to(self.device)
        if self.training_settings.gradient_checkpointing:
            self.check_checkpointing()
            for block in _recomputable(self.model):
                block.gradient_checkpointing = True
                block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        if self.compile_towers:
            for tower in self.towers():
                tower.compile()

    def on_fit_end(self) -> None:
        """Leave the blocks as they were."""
        for block in _recomputable(self.model) if self.training_settings.gradient_checkpointing else ():
            block.gradient_checkpointing = False

    def on_after_backward(self) -> None:
        """Average what is whole on every rank of a sharded model."""
        if self.device_mesh is not None:
            average_replicated_(self.parameters(), self._over_ranks)

    def write_(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Write a weight while it trains, also where the strategy holds a copy of it that the optimizer moves."""
        write = getattr(self.trainer.strategy, "write_", None)
        if write:
            write(parameter, value)
        else:
            parameter.data.copy_(value)

    def _over_ranks(self, value: Tensor) -> Tensor:
        """Mean of a tensor over the ranks, elementwise."""
        return self.trainer.strategy.reduce(value.clone(), reduce_op="mean")

    def on_validation_start(self) -> None:
        """Make the weights of a sharded model whole: not every rank has as many batches to evaluate."""
        if self.device_mesh is not None:
            gather_(self.model)

    def on_validation_end(self) -> None:
        """Keep this rank's slices only, as before."""
        if self.device_mesh is not None:
            release_(self.model)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As Lightning clips, also where the gradients of a sharded model lie on several ranks."""
        if self.device_mesh is not None and gradient_clip_val:
            clip_(self.parameters(), gradient_clip_val, gradient_clip_algorithm or "norm")
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """Buffers, which every rank computes alike; DDP would send them around at each step, and a queue is large."""
        return [name for name, _ in self.named_buffers()]

    def towers(self) -> list[nn.Module]:
        """The parts of the model that ``compile`` compiles."""
        return [self.model]

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with weight decay on matrices, and the schedule of the phase."""
        settings = self.training_settings
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in trained if p.dim() >= 2], "weight_decay": settings.weight_decay},
            {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = LambdaLR(optimizer, lambda step: settings.factor(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _recomputable(model: nn.Module) -> list[Any]:
    """The blocks of a model that can be computed anew in the backward pass."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in evaluation mode that no optimizer trains."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@torch.no_grad()
def moving_average_(average: nn.Module, model: nn.Module, momentum: float) -> None:
    """Move ``average`` towards the dense weights of ``model``: ``average * momentum + weight * (1 - momentum)``.

    Masks that are attached to ``model`` do not count: the average stays dense. Where both are sharded, each rank moves
    its own slices.

    Args:
        average: Copy of the model.
        model: Model that trains, with or without masks.
        momentum: Share that stays, in [0, 1).
    """
    trained = {_dense_name(name): parameter for name, parameter in model.named_parameters()}
    pairs = [pair for name, parameter in average.named_parameters() for pair in moving(parameter, trained[name])]
    torch._foreach_lerp_([mean for mean, _ in pairs], [weight for _, weight in pairs], 1.0 - momentum)


def _dense_name(name: str) -> str:
    """Name of a parameter without what an attached parametrisation puts into it."""
    return name.replace(".parametrizations.", ".").removesuffix(".original")
