"""Stochastic depth against timm's, and what it must leave alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from tests import tiny
from upop.tasks.stochastic_depth import add_stochastic_depth


class Tupled(nn.Linear):
    def forward(self, given: Tensor) -> Any:
        return super().forward(given), "weights"


def test_a_branch_is_skipped_as_by_timm() -> None:
    branch, given = nn.Linear(4, 4), torch.randn(64, 3, 4)
    expected, reference = branch(given), DropPath(0.5)
    add_stochastic_depth([[nn.Identity()], [branch]], 0.5)
    torch.manual_seed(5)
    found = branch(given)
    torch.manual_seed(5)
    assert torch.equal(found, reference(expected))
    skipped = (found == 0).all(dim=(1, 2))
    assert 16 < int(skipped.sum()) < 48  # whole samples, about half of them
    torch.testing.assert_close(found[~skipped], 2 * expected[~skipped])


def test_the_rate_grows_linearly_from_nothing() -> None:
    layers = [[nn.Identity(), Tupled(2, 2)] for _ in range(5)]
    with torch.no_grad():
        for _, linear in layers:
            linear.weight.copy_(torch.eye(2))
            linear.bias.zero_()
    add_stochastic_depth(layers, 0.4)
    torch.manual_seed(0)
    given = torch.ones(20000, 2)
    for layer, (plain, tupled) in enumerate(layers):
        rates = [(found == 0).all(1).float().mean().item() for found in (plain(given), tupled(given)[0])]
        assert rates == pytest.approx([0.1 * layer] * 2, abs=0.012)
        assert tupled(given)[1] == "weights"


def test_evaluation_weights_and_copies_are_as_before() -> None:
    model = tiny.build("blip_vqa")
    before, weights = copy.deepcopy(model).eval(), dict(model.state_dict())
    handles = add_stochastic_depth([[layer.self_attn, layer.mlp] for layer in model.vision_model.encoder.layers], 0.9)
    given = torch.randn(4, 3, 16, 16)
    image = lambda one: one.vision_model(pixel_values=given).last_hidden_state  # noqa: E731
    assert torch.equal(image(model.eval()), image(before))
    assert list(model.state_dict()) == list(weights)
    assert not torch.equal(image(model.train()), image(copy.deepcopy(model).eval()))
    for handle in handles:
        handle.remove()
    assert torch.equal(image(model.train()), image(before))


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_a_rate_that_is_none(rate: float) -> None:
    with pytest.raises(ValueError, match=r"drop_path is .*; it is the probability to skip the last vision layer"):
        add_stochastic_depth([], rate)
