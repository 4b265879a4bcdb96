import pytest
import torch

from upop.search.policies.base import GradientPolicy, Policy

from ..toys import noise, site

SITES = [site("vision.layers.0.mlp", "neuron", 3)]
NAME = SITES[0].name


class Total(GradientPolicy):
    def worth(self, gradient, mask):
        return gradient + mask


def test_abstract_until_it_scores():
    with pytest.raises(TypeError, match="abstract"):
        Policy(SITES)


def test_sums_are_fp32_whatever_comes_in():
    policy = Total(SITES)
    for _ in range(300):
        policy.collect({NAME: torch.ones(3, dtype=torch.bfloat16)}, {NAME: torch.zeros(3)})
    assert policy.scores()[NAME].tolist() == [300.0] * 3  # bfloat16 would stand still at 256
    assert policy.steps == 300
    assert not policy.scores()[NAME].requires_grad


def test_messages():
    policy = Total(SITES)
    with pytest.raises(
        ValueError, match=r"no gradients for site '.*neuron': given \['x'\]; give gradients for every site"
    ):
        policy.collect({"x": torch.ones(3)}, noise(SITES))
    with pytest.raises(ValueError, match=r"masks of site '.*neuron' have shape \(4,\); it has 3 units"):
        policy.collect(noise(SITES), {NAME: torch.ones(4)})
    assert policy.steps == 0
