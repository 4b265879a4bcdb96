import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upop.search.allocation import priorities

from .toys import noise, tower

SITES = tower("vision", 2, head_dims=4, neurons=6) + tower("text", 1, head_dims=5, neurons=7)


@given(st.integers(0, 50), st.floats(1e-6, 1e6), st.floats(-100, 100))
@settings(max_examples=25, deadline=None)
def test_each_kind_is_standardised_over_all_modalities(seed, scale, shift):
    scores = {name: value.double() * scale + shift for name, value in noise(SITES, seed).items()}
    found = priorities(scores, SITES, "unified")
    assert list(found) == [site.name for site in SITES]
    for kind in ("head_dim", "neuron"):
        names = [site.name for site in SITES if site.kind == kind]
        raw = np.concatenate([scores[name].numpy() for name in names])
        ours = np.concatenate([found[name].numpy() for name in names])
        np.testing.assert_allclose(ours, (raw - np.mean(raw)) / np.std(raw), atol=1e-4)
    again = priorities(scores, SITES, "per_modality")
    assert all(torch.equal(again[name], found[name]) for name in found)


def test_equal_scores_get_zero_not_noise():
    found = priorities({site.name: torch.full((site.units,), 0.1) for site in SITES}, SITES)
    assert all(value.eq(0).all() for value in found.values())


def test_one_differing_score_still_ranks():
    scores = {site.name: torch.full((site.units,), 0.1) for site in SITES}
    scores[SITES[0].name][2] = torch.nextafter(torch.tensor(0.1), torch.tensor(0.0))
    assert priorities(scores, SITES)[SITES[0].name].argmin() == 2


def test_uniform_is_the_rank_within_the_site():
    scores = noise(SITES)
    found = priorities(scores, SITES, "uniform")
    for name, value in scores.items():
        ranks = [(value < one).sum().item() for one in value]
        np.testing.assert_allclose(found[name].numpy(), (np.array(ranks) + 0.5) / len(value))
    ties = priorities({name: torch.zeros_like(value) for name, value in scores.items()}, SITES, "uniform")
    assert ties[SITES[0].name].tolist() == [0.125, 0.375, 0.625, 0.875]


def test_messages():
    name = SITES[0].name
    with pytest.raises(ValueError, match=r"search\.allocation is 'unifrom'; .*; did you mean 'unif"):
        priorities(noise(SITES), SITES, "unifrom")
    with pytest.raises(ValueError, match=f"no scores for site '{name}'; there are scores for"):
        priorities({}, SITES)
    with pytest.raises(ValueError, match=r"scores of site .* have shape \(1, 4\); it has 4 units"):
        priorities({**noise(SITES), name: torch.ones(1, 4)}, SITES)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"2 of 4 scores of site '{name}' are not finite"):
            priorities({**noise(SITES), name: torch.tensor([bad, 1, bad, 2])}, SITES)
