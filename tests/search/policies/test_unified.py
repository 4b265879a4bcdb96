import numpy as np

from upop.search import create

from ..toys import noise, tower

SITES = tower("text", 1, head_dims=4, neurons=6)


def test_worth_is_minus_the_signed_sum():
    policy = create("unified", SITES)
    for step in range(4):
        policy.collect(noise(SITES, step), noise(SITES, 9))
    for name, found in policy.scores().items():
        np.testing.assert_allclose(
            found, -np.sum([noise(SITES, step)[name].numpy() for step in range(4)], 0), atol=1e-5
        )
    assert policy.needs_gradients
    assert not policy.needs_norms


def test_the_unit_whose_shrinking_lowers_the_loss_goes_first():
    import torch

    mask = torch.ones(3, requires_grad=True)
    (mask * torch.tensor([2.0, -3.0, 0.5])).sum().backward()  # the loss falls fastest when unit 0 shrinks
    site = tower("text", 1, neurons=3)
    policy = create("unified", site)
    policy.collect({site[0].name: mask.grad}, {site[0].name: mask})
    assert policy.scores()[site[0].name].argsort().tolist() == [0, 2, 1]
