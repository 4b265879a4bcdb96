"""The teacher's part of a loss: weighted, logged, without gradients of its own, and nothing of it where it is off."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from upop.tasks.base import Distillation
from upop.tasks.hidden import HiddenStates, distil_hidden
from upop.tasks.taught import TaughtTask


class Taught(TaughtTask):
    """One that evaluates nothing."""

    def _start_evaluation(self) -> None: ...

    def _evaluate(self, batch: dict[str, Tensor]) -> None: ...

    def _report(self, split: str) -> None: ...


def taught(logits: float, features: float) -> TaughtTask:
    task = Taught("none")
    task.adopt(tiny.build("vit", seed=0), None)
    task.learn_from(tiny.build("vit", seed=1), Distillation(logits, features))
    task.log = lambda name, value: logged.update({name: float(value)})  # type: ignore[method-assign, assignment]
    logged.clear()
    return task


logged: dict[str, float] = {}
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def predict(model: nn.Module) -> Tensor:
    return model(pixel_values=PIXELS).pooler_output


@pytest.mark.parametrize(("logits", "features"), [(2.0, 0.0), (0.0, 3.0), (2.0, 3.0)])
def test_loss_is_the_weighted_sum(logits: float, features: float) -> None:
    task = taught(logits, features)
    with task.recording(task.model) as states:
        found = predict(task.model)
    loss = task.taught_loss(states, predict, lambda target: (found - target).square().mean(), {})
    with HiddenStates(task.model) as ours:
        again = predict(task.model)
    with HiddenStates(task.teacher) as theirs:
        target = predict(task.teacher)
    expected = logits * (again - target).square().mean() + features * distil_hidden(ours, theirs)
    torch.testing.assert_close(loss, expected)
    assert logged == {"loss/distillation": pytest.approx(float(expected))}
    loss.backward()
    assert any(parameter.grad is not None for parameter in task.model.parameters())
    assert all(parameter.grad is None for parameter in task.teacher.parameters())


def test_nothing_is_recorded_for_logits_alone() -> None:
    task = taught(1.0, 0.0)
    with task.recording(task.model) as states:
        predict(task.model)
    assert states is None


def test_without_a_teacher() -> None:
    task = Taught("none")
    with pytest.raises(ValueError, match="distillation is on, but the task has no teacher; call learn_from first"):
        task.taught_loss(None, predict, lambda target: target.mean(), {})
