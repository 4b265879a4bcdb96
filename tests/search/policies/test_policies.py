"""What every policy has to do, found by walking the folder."""

import io

import pytest
import torch

import upop.search.policies as folder
from upop.search import Policy, create, names

from ..toys import noise, tower

SITES = tower("vision", 2, head_dims=4, neurons=6) + tower("text", 1, heads=3, neurons=5)


def feed(policy, steps):
    for step in steps:
        policy.collect(noise(SITES, step), {name: value.abs() for name, value in noise(SITES, step + 1000).items()})


def norms_for(policy):
    return {name: value.abs() for name, value in noise(SITES, 7).items()} if policy.needs_norms else None


def test_names_are_the_files_of_the_folder():
    from pathlib import Path

    files = {path.stem for path in Path(folder.__file__).parent.glob("*.py")}
    assert set(names()) == files - {"__init__", "base"}
    assert {"unified", "taylor", "magnitude", "random"} <= set(names())


@pytest.mark.parametrize("name", names())
def test_scores_are_one_finite_fp32_number_per_unit(name):
    policy = create(name, SITES, seed=3)
    assert isinstance(policy, Policy)
    assert isinstance(policy.needs_gradients, bool)
    for steps in ([], [1, 2]):
        feed(policy, steps)
        scores = policy.scores(norms_for(policy))
        assert list(scores) == [site.name for site in SITES]
        for site in SITES:
            assert scores[site.name].shape == (site.units,)
            assert scores[site.name].dtype == torch.float32
            assert scores[site.name].isfinite().all()


@pytest.mark.parametrize("name", names())
def test_asking_and_collecting_change_nothing_outside(name):
    policy = create(name, SITES)
    feed(policy, [1])
    first = policy.scores(norms_for(policy))
    kept = {site: value.clone() for site, value in first.items()}
    for value in first.values():
        value.fill_(-1)
    assert all(torch.equal(kept[site], value) for site, value in policy.scores(norms_for(policy)).items())
    gradients, masks = noise(SITES, 5), noise(SITES, 6)
    policy.collect(gradients, masks)
    assert all(torch.equal(gradients[site], value) for site, value in noise(SITES, 5).items())
    assert all(torch.equal(masks[site], value) for site, value in noise(SITES, 6).items())


@pytest.mark.parametrize("name", names())
def test_resumed_equals_unbroken(name):
    unbroken, first, second = (create(name, SITES, seed=seed) for seed in (1, 1, 2))
    feed(unbroken, range(6))
    feed(first, range(3))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    feed(first, [99])  # what is saved does not follow
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    feed(second, range(3, 6))
    scores = second.scores(norms_for(second))
    assert all(torch.equal(scores[site], value) for site, value in unbroken.scores(norms_for(unbroken)).items())


@pytest.mark.parametrize("name", names())
def test_state_of_other_sites_is_refused(name):
    state = create(name, tower("text", 1, neurons=2)).state_dict()
    if state:
        with pytest.raises(ValueError, match=r"for site 'vision.layers.0.attention.head_dim'"):
            create(name, SITES).load_state_dict(state)


def test_unknown_name_lists_the_names():
    with pytest.raises(
        ValueError, match=r"search\.policy is 'taylro'; choose one of \['magnitude', .*; did you mean 'taylor'"
    ):
        create("taylro", SITES)
    for name in ("base", "__init__", "os.path"):
        with pytest.raises(ValueError, match="choose one of"):
            create(name, SITES)
