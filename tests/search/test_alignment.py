import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from upop.search import Budget, align, check, device_multiples, price, priorities, select, select_aligned
from upop.search.alignment import Price, finer

from .toys import ToyCost, noise, tower

# ViT-B: 64 head-dims and 3072 neurons.
LARGE = tower("vision", 2, head_dims=64, neurons=3072) + tower("text", 2, head_dims=64, neurons=2048)


def counts(keep):
    return {name: len(units) for name, units in keep.items()}


@pytest.mark.parametrize(
    ("device", "head_dims", "neurons", "expected"),
    [
        ("cpu", 64, 3072, {"head_dim": 8, "neuron": 16}),
        ("cuda", 64, 3072, {"head_dim": 8, "neuron": 64}),
        ("mps", 64, 3072, {"head_dim": 8, "neuron": 64}),
        ("cuda", 32, 256, {"head_dim": 8, "neuron": 64}),
        ("cuda", 31, 255, {"head_dim": 4, "neuron": 32}),
        ("cpu", 16, 48, {"head_dim": 4, "neuron": 8}),
        ("cpu", 8, 24, {"head_dim": 2, "neuron": 4}),
        ("cpu", 7, 4, {}),
        ("cuda", 80, 0, {"head_dim": 8}),
        ("cpu", 0, 100, {"neuron": 16}),
    ],
)
def test_multiples_of_a_device_and_of_small_sites(device, head_dims, neurons, expected):
    sites = tower("vision", 2, head_dims=head_dims, neurons=neurons)
    assert device_multiples(device, sites) == expected
    assert device_multiples(device, [*sites, *tower("text", 1, heads=12)]) == expected, "whole heads are left out"


@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from(["cpu", "cuda"]))
def test_the_smallest_site_has_a_choice_of_four(small, large, device):
    sites = tower("vision", 1, neurons=small) + tower("text", 1, neurons=large)
    multiple = device_multiples(device, sites).get("neuron", 1)
    most = 16 if device == "cpu" else 64
    powers = [2**power for power in range(7) if 2**power <= most]
    assert multiple == max([power for power in powers if 4 * power <= min(small, large)], default=1)


def test_finer_halves_down_to_none():
    assert list(finer({"head_dim": 8, "neuron": 16})) == [
        {"head_dim": 4, "neuron": 8},
        {"head_dim": 2, "neuron": 4},
        {"neuron": 2},
        {},
    ]
    assert list(finer({})) == []


def test_the_device_s_multiples_hold_where_the_budget_can_be_met():
    cost = ToyCost(LARGE)
    budget = align(Budget(0.5), LARGE, cost, "cuda")
    assert budget.multiple_of == {"head_dim": 8, "neuron": 64}
    keep, same = select_aligned(priorities(noise(LARGE), LARGE), LARGE, cost, budget, 1.0)
    assert same == budget
    assert {len(keep[site.name]) % budget.multiple_of[site.kind] for site in LARGE} == {0}


def test_multiples_that_are_too_coarse_are_halved_until_the_budget_can_be_met():
    sites = tower("vision", 2, neurons=64)  # 128 units at one price: 64 have to go, in steps of 16, give or take 0.3
    cost = ToyCost(sites)
    assert align(Budget(0.5), sites, cost, "cpu").multiple_of == {"neuron": 16}
    assert align(Budget(60 / 128), sites, cost, "cpu").multiple_of == {"neuron": 4}, "60 are no multiple of 8"
    assert align(Budget(61 / 128), sites, cost, "cpu").multiple_of == {}, "61 are odd"
    assert align(Budget(61 / 128, tolerance=0.1), sites, cost, "cpu").multiple_of == {"neuron": 16}
    for removed, multiple in ((60, 4), (61, 1)):
        keep, used = select_aligned(noise(sites), sites, cost, Budget(removed / 128, multiple_of={"neuron": 16}), 1.0)
        assert used.multiple_of.get("neuron", 1) == multiple
        assert sum(counts(keep).values()) == 128 - removed


def test_what_no_multiple_can_mend_is_said():
    sites = tower("vision", 2, neurons=64)
    with pytest.raises(ValueError, match=r"search\.ceiling\['vision'\] = 0\.2 binds: loosen it"):
        align(Budget(0.5, ceiling={"vision": 0.2}), sites, ToyCost(sites), "cpu")
    with pytest.raises(ValueError, match="did you mean 'vision'"):
        align(Budget(0.5, ceiling={"visoin": 0.2}), sites, ToyCost(sites), "cpu")
    heads = tower("vision", 2, heads=4)
    with pytest.raises(ValueError, match="the nearest plan removes 4 params, the target is 4"):
        select_aligned(noise(heads), heads, ToyCost(heads), Budget(0.55), 1.0)


def test_the_price_of_alignment_by_hand():
    sites = tower("vision", 1, neurons=8) + tower("text", 1, neurons=8)
    first, second = (site.name for site in sites)
    # Without multiples the six worst go: 0 to 4 of the first site and 5 of the second.
    ranks = {first: torch.arange(8.0), second: torch.tensor([4.5, 10, 11, 12, 13, 14, 15, 16])}
    budget = Budget(6 / 16, multiple_of={"neuron": 2})
    keep = select(ranks, sites, ToyCost(sites), budget)
    assert counts(keep) == {first: 2, second: 8}
    found = price(ranks, keep, sites, ToyCost(sites), budget)
    assert (found.removed, found.others, found.multiple_of) == (6, 1, {"neuron": 2})
    assert found.lost == pytest.approx(1 - (6 + 7 + 4.5 + 91) / (5 + 6 + 7 + 91))
    assert found.line() == (
        "aligned to neuron 2: 16.7 % of the units that go would stay without it, kept priority 0.46 % lower"
    )


def test_alignment_has_a_price_only_where_there_is_alignment_and_something_to_compare_with():
    sites = tower("vision", 2, neurons=64)
    cost, ranks = ToyCost(sites), noise(sites)
    assert price(ranks, select(ranks, sites, cost, Budget(0.5)), sites, cost, Budget(0.5)) is None
    free = Budget(0.5, multiple_of={"neuron": 64}, tolerance=0.4)
    keep = {site.name: tuple(range(site.units)) for site in sites}
    assert price({name: -1 - value.abs() for name, value in ranks.items()}, keep, sites, cost, free).lost is None
    heads = tower("vision", 2, heads=4)
    coarse = Budget(0.55, multiple_of={"head": 2})
    assert price(noise(heads), {site.name: (0, 1) for site in heads}, heads, ToyCost(heads), coarse) is None
    assert Price({"neuron": 2}, 0, 0, None).line() == (
        "aligned to neuron 2: 0.0 % of the units that go would stay without it"
    )
    assert Price({"neuron": 2}, 4, 1, -0.001).line().endswith("kept priority 0.10 % higher")


def test_a_check_without_alignment_is_the_one_there_was():
    assert align(Budget(0.5), tower("vision", 1, neurons=4), ToyCost(tower("vision", 1, neurons=4)), "cpu") == Budget(
        0.5
    )
    check(Budget(0.5), LARGE, ToyCost(LARGE))
