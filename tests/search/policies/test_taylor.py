import numpy as np

from upop.search import create

from ..toys import noise, tower

SITES = tower("text", 1, head_dims=4, neurons=6)


def test_worth_is_the_sum_of_sizes():
    policy = create("taylor", SITES)
    for step in range(4):
        policy.collect(noise(SITES, step), noise(SITES, step + 50))
    for name, found in policy.scores().items():
        terms = [np.abs(noise(SITES, step)[name].numpy() * noise(SITES, step + 50)[name].numpy()) for step in range(4)]
        np.testing.assert_allclose(found, np.sum(terms, 0), atol=1e-5)
