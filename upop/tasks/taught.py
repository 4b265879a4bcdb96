"""What tasks share whose student learns predictions and hidden states from the dense model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from upop.tasks.evaluated import EvaluatedTask
from upop.tasks.hidden import HiddenStates, distil_hidden, recording


class TaughtTask(EvaluatedTask):
    """A task that can distil: the caller runs the student inside :meth:`recording`, then adds :meth:`taught_loss`."""

    def recording(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Record the hidden states of ``model``, if the distillation wants them."""
        return recording(model, self.distillation.features > 0)

    def taught_loss(
        self,
        states: HiddenStates | None,
        predict: Callable[[nn.Module], Tensor],
        divergence: Callable[[Tensor], Tensor],
        masks: Mapping[str, Tensor],
    ) -> Tensor:
        """Weighted distance to what the teacher predicts and to its hidden states; also logged.

        Args:
            states: What :meth:`recording` gave for the student.
            predict: Predictions of a model for the batch.
            divergence: Distance of the student's predictions to these of the teacher, scalar.
            masks: Tokens that count, by tower; see :func:`~upop.tasks.hidden.distil_hidden`.
        """
        weights, teacher = self.distillation, self.teacher
        with torch.no_grad(), self.recording(teacher) as taught:
            target = predict(teacher)
        loss = torch.zeros((), device=target.device)
        if weights.logits:
            loss = loss + weights.logits * divergence(target)
        if states is not None:
            loss = loss + weights.features * distil_hidden(states, taught, masks, self._over_ranks)
        self.log("loss/distillation", loss.detach())
        return loss
