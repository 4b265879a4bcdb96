import torch

from upop.search import Budget, create, priorities, select

from ..toys import ToyCost, tower

SITES = tower("vision", 2, head_dims=8, neurons=40) + tower("text", 2, neurons=30)


def test_seed_decides_and_other_sites_do_not():
    one, same, other = (create("random", SITES, seed=seed).scores() for seed in (1, 1, 2))
    alone = create("random", SITES[-1:], seed=1).scores()
    name = SITES[-1].name
    assert all(torch.equal(value, same[key]) for key, value in one.items())
    assert torch.equal(alone[name], one[name])
    assert not torch.equal(other[name], one[name])
    assert not torch.equal(one[SITES[-2].name], one[name])


def test_a_larger_selection_contains_a_smaller_one():
    cost, policy = ToyCost(SITES), create("random", SITES, seed=4)
    previous = None
    for share in (0.1, 0.4, 0.7, 1.0):
        keep = select(priorities(policy.scores(), SITES), SITES, cost, Budget(0.6), share)
        if previous:
            assert all(set(units) <= set(previous[name]) for name, units in keep.items())
        previous = keep
