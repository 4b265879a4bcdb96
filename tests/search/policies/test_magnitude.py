import pytest
import torch

from upop.search import create

from ..toys import noise, tower

SITES = tower("text", 1, head_dims=4, neurons=6)


def test_worth_is_the_norm_given():
    policy, norms = create("magnitude", SITES), noise(SITES)
    assert policy.needs_norms
    assert not policy.needs_gradients
    assert all(torch.equal(found, norms[name]) for name, found in policy.scores(norms).items())


def test_norms_are_needed():
    with pytest.raises(
        ValueError, match=r"no norms for site 'text.*head_dim': given nothing; give norms for every site"
    ):
        create("magnitude", SITES).scores(None)
    with pytest.raises(ValueError, match=r"norms of site .* have shape \(2,\); it has 4 units"):
        create("magnitude", SITES).scores({**noise(SITES), SITES[0].name: torch.ones(2)})
