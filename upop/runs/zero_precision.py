"""Precision under DeepSpeed: fp32 weights, and autocast where it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from torch import Tensor


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
        strategy: Any = model.trainer.strategy  # a ZeroStrategy
        if strategy.dropped:
            strategy.dropped = False
        else:
            model.trainer.model.step(**kwargs)
        return result
