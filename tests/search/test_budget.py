import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from upop.search import Budget, check, check_settings, priorities, select

from .toys import ToyCost, noise, tower

SITES = tower("vision", 2, head_dims=16, neurons=60) + tower("text", 2, heads=4, head_dims=8, neurons=40)
PRICE = {
    "vision.layers.0.attention": 20,
    "vision.layers.1.attention": 20,
    "text.layers.0.mlp": 3,
    "text.layers.1.mlp": 3,
}
COST = ToyCost(SITES, PRICE)
FINE = settings(max_examples=40, deadline=None)


def counts(keep):
    return {name: len(units) for name, units in keep.items()}


def gone(keep, currency="params", modality=None, cost=COST):
    return cost.removed(counts(keep), currency, modality)


def ranked(seed, sites=SITES):
    return priorities(noise(sites, seed), sites)


def reference(ranks, sites, cost, target, multiple=1):
    """The nearest finished plan over all prefixes of the list, the slow way."""
    units = [
        (float(ranks[site.name][unit]), place, unit) for place, site in enumerate(sites) for unit in range(site.units)
    ]
    removed, found = {site.name: set() for site in sites}, []
    for length in range(len(units) + 1):
        kept = {}
        for site in sites:
            aligned = -(-max(1, site.units - len(removed[site.name])) // multiple) * multiple
            kept[site.name] = min(aligned, site.units)
        found.append(abs(cost.removed(kept, "params") - target))
        if length < len(units):
            _, place, unit = sorted(units)[length]
            removed[sites[place].name].add(unit)
    return min(found)


@given(
    st.integers(0, 9999),
    st.floats(0.15, 0.9),
    st.sampled_from(["params", "flops"]),
    st.sampled_from(["prunable", "model"]),
)
@FINE
def test_cost_is_within_tolerance_and_the_worst_of_each_site_go(seed, removed, of, scope):
    budget = Budget(removed * (0.5 if scope == "model" else 1), of=of, scope=scope)
    ranks = ranked(seed)
    keep = select(ranks, SITES, COST, budget)
    assert abs(gone(keep, of) - budget.target(COST)) <= 0.005 * budget.target(COST) * (1 + 1e-9)
    assert list(keep) == [site.name for site in SITES]
    for site in SITES:
        units = keep[site.name]
        assert 1 <= len(units) <= site.units
        assert list(units) == sorted(set(units))
        assert all(type(unit) is int for unit in units)
        best = sorted(range(site.units), key=lambda unit: (ranks[site.name][unit].item(), unit))[
            site.units - len(units) :
        ]
        assert sorted(best) == list(units)


@given(st.integers(0, 9999), st.floats(0.1, 0.8), st.sampled_from([1, 3]))
@settings(max_examples=20, deadline=None)
def test_no_worse_than_the_best_prefix(seed, removed, multiple):
    sites = tower("vision", 2, head_dims=6) + tower("text", 1, heads=3, head_dims=5)
    cost = ToyCost(sites, {"vision.layers.0.attention": 7})
    multiples = {"head": multiple, "head_dim": multiple} if multiple > 1 else {}
    exact = Budget(removed, multiple_of=multiples, tolerance=1e-6)
    target, ranks = exact.target(cost), ranked(seed, sites)
    best = reference(ranks, sites, cost, target, multiple)
    near = select(ranks, sites, cost, exact, share=1 - 1e-12)  # not final, so it may miss
    assert abs(gone(near, cost=cost) - target) <= best + 1e-6


@given(st.integers(0, 9999), st.integers(1, 99))
@settings(max_examples=30, deadline=None)
def test_no_single_step_and_no_swap_gets_nearer(seed, percent):
    sites = tower("vision", 1, neurons=4) + tower("text", 1, neurons=5) + tower("fusion", 1, neurons=3)
    cost = ToyCost(sites, dict(zip([site.block for site in sites], (7, 3, 2), strict=True)))
    target = percent / 100 * cost.prunable("params")
    keep = select(ranked(seed, sites), sites, cost, Budget(percent / 100, tolerance=1e-6), share=1 - 1e-9)
    kept = [len(keep[site.name]) for site in sites]
    reached = abs(gone(keep, cost=cost) - target)
    for move in itertools.product((-1, 0, 1), repeat=3):
        other = [number + by for number, by in zip(kept, move, strict=True)]
        size = sum(abs(by) for by in move)
        if size == 3 or (size == 2 and sum(move)):
            continue  # neither a step nor a swap
        if all(1 <= number <= site.units for number, site in zip(other, sites, strict=True)):
            removed = sum(
                price * (site.units - number) for price, site, number in zip((7, 3, 2), sites, other, strict=True)
            )
            assert reached <= abs(removed - target) + 1e-6


@given(st.integers(0, 999), st.floats(0.15, 0.85), st.floats(0.15, 0.85))
@FINE
def test_more_removed_costs_more(seed, one, other):
    small, large = sorted((one, other))
    costs = [gone(select(ranked(seed), SITES, COST, Budget(removed))) for removed in (small, large)]
    assert costs[0] <= costs[1] + 0.01 * large * COST.prunable("params")


@given(
    st.integers(0, 999),
    st.sampled_from(["unified", "uniform"]),
    st.integers(0, 8),
    st.integers(0, 8),
    st.integers(2, 8),
)
@FINE
def test_floors_ceilings_and_multiples_hold(seed, allocation, low, span, removed):
    floor, ceiling = low / 10, min(low + span, 9) / 10
    budget = Budget(
        removed / 10,
        multiple_of={"neuron": 4, "head_dim": 2},
        floor={"vision": floor / 2, "text.*neuron": floor / 2},
        ceiling={"vision": ceiling, "text.*neuron": max(ceiling, 0.5)},
        allocation=allocation,
        tolerance=0.02,
    )
    ranks = priorities(noise(SITES, seed), SITES, allocation)
    try:
        check(budget, SITES, COST)
        keep = select(ranks, SITES, COST, budget)
    except ValueError:
        assume(False)
    assert abs(gone(keep) - budget.target(COST)) <= 0.02 * budget.target(COST)
    whole = COST.prunable("params", "vision")
    assert floor / 2 * whole - 1e-6 <= gone(keep, modality="vision") <= ceiling * whole + 1e-6
    for site in SITES:
        kept = len(keep[site.name])
        assert kept % budget.multiple_of.get(site.kind, 1) == 0
        if site.modality == "text" and site.kind == "neuron":
            assert floor / 2 * 40 - 1e-6 <= 40 - kept <= max(ceiling, 0.5) * 40 + 1e-6


@given(st.integers(0, 999), st.floats(0, 0.999))
@FINE
def test_on_the_way_floors_scale_and_ceilings_do_not(seed, share):
    budget = Budget(0.5, floor={"text": 0.6}, ceiling={"vision": 0.55, "vision.layers.0*": 0.5})
    keep = select(ranked(seed), SITES, COST, budget, share)
    step = 4 * 8  # the largest one here: a position of all heads, or a head
    assert gone(keep, modality="text") >= share * 0.6 * COST.prunable("params", "text") - step
    assert abs(gone(keep) - share * budget.target(COST)) <= step
    assert len(keep["vision.layers.0.mlp.neuron"]) >= 30
    assert select(ranked(seed), SITES, COST, budget, 0.0) == {site.name: tuple(range(site.units)) for site in SITES}


def test_one_list_can_ruin_a_modality_and_a_ceiling_prevents_it():
    ranks = {name: value - 10 * name.startswith("text") for name, value in ranked(0).items()}
    text = COST.prunable("params", "text")
    free, held = Budget(0.2), Budget(0.2, ceiling={"text": 0.3})
    assert gone(select(ranks, SITES, COST, free), modality="text") > 2 * 0.3 * text
    keep = select(ranks, SITES, COST, held)
    assert 0.25 * text < gone(keep, modality="text") <= 0.3 * text
    assert abs(gone(keep) - held.target(COST)) <= 0.005 * held.target(COST)


def test_per_modality_is_exact_for_each():
    fractions = {"vision": 0.3, "text": 0.6}
    budget = Budget(None, allocation="per_modality", fractions=fractions, tolerance=0.01)
    check(budget, SITES, COST)
    for seed in range(5):
        keep = select(ranked(seed), SITES, COST, budget)
        for modality, removed in fractions.items():
            target = removed * COST.prunable("params", modality)
            assert abs(gone(keep, modality=modality) - target) <= 0.01 * target
    half = select(ranked(0), SITES, COST, Budget(0.5, allocation="per_modality"))
    assert gone(half, modality="vision") == pytest.approx(0.5 * COST.prunable("params", "vision"), rel=0.005)
    only = Budget(None, allocation="per_modality", fractions={"vision": 0.5})
    keep = select(ranked(0), SITES, COST, only)
    assert all(len(keep[site.name]) == site.units for site in SITES if site.modality == "text")


def test_uniform_takes_the_same_share_of_every_site():
    sites = tower("vision", 3, neurons=100) + tower("text", 2, neurons=50)
    keep = select(priorities(noise(sites), sites, "uniform"), sites, ToyCost(sites), Budget(0.4, allocation="uniform"))
    np.testing.assert_allclose([len(keep[site.name]) / site.units for site in sites], 0.6, atol=0.021)


def test_ties_go_by_site_then_unit():
    sites = tower("text", 2, neurons=4)
    zeros = {site.name: torch.zeros(4) for site in sites}
    assert list(select(zeros, sites, ToyCost(sites), Budget(0.25)).values()) == [(2, 3), (0, 1, 2, 3)]


def test_a_site_that_is_no_multiple_may_stay_whole():
    sites = tower("text", 2, neurons=10)
    ranks = {sites[0].name: torch.arange(10.0), sites[1].name: torch.arange(10.0) + 100}
    keep = select(ranks, sites, ToyCost(sites), Budget(0.1, multiple_of={"neuron": 8}))
    assert counts(keep) == {sites[0].name: 8, sites[1].name: 10}


def test_few_costs_are_evaluated():
    cost = ToyCost(SITES, PRICE)
    select(ranked(0), SITES, cost, Budget(0.5))
    assert cost.calls <= 20


def test_heads_only_says_how_coarse_they_are():
    sites = tower("vision", 3, heads=4)
    cost = ToyCost(sites, dict.fromkeys([site.block for site in sites], 100))
    check(Budget(0.5), sites, cost)
    text = (
        r"the nearest plan removes 500 params, the target is 540 \(-7\.41%, search\.tolerance is 0\.50%\); "
        r"the smallest step is 1 head at site 'vision\.layers\.\d\.attention\.head', 100 params = 18\.5% of the "
        r"target; add finer units"
    )
    for call in (check, lambda budget, sites, cost: select(ranked(1, sites), sites, cost, budget)):
        with pytest.raises(ValueError, match=text):
            call(Budget(0.45), sites, cost)
    check(Budget(0.45, tolerance=0.1), sites, cost)
    assert gone(select(ranked(1, sites), sites, cost, Budget(0.45), 0.99), cost=cost) == 500


def test_unchecked_impossible_budgets_still_raise_at_the_end():
    with pytest.raises(ValueError, match=r"the sites are at their limits: loosen search\.floor, search\.ceiling"):
        select(ranked(0), SITES, COST, Budget(0.5, ceiling={"*": 0.1}))
    sites = tower("vision", 1, heads=3) + tower("text", 1, heads=3)
    narrow = Budget(0.5, floor={"text": 0.4}, ceiling={"text": 0.5}, tolerance=0.5)
    with pytest.raises(
        ValueError, match=r"no plan removes between 1 and 2 params of modality 'text'; 1 is nearest; widen"
    ):
        check(narrow, sites, ToyCost(sites))


@pytest.mark.parametrize(
    ("settings_", "text"),
    [
        ({"removed": 1.3}, r"^search\.removed is 1\.3; it is the fraction to remove, between 0 and 1 \(exclusive\)$"),
        ({"removed": 0}, "search.removed is 0; it is"),
        ({"removed": 1.0}, "search.removed is 1.0; it is"),
        ({"removed": float("nan")}, "search.removed is nan; it is"),
        ({"removed": "half"}, "search.removed is 'half'; it is"),
        ({"removed": None}, "search.removed is missing; give the fraction"),
        (
            {"of": "parms"},
            r"search\.of is 'parms'; choose one of \['flops', 'latency', 'params'\]; did you mean 'params'\?",
        ),
        ({"of": "latencies"}, r"search\.of is 'latencies'; choose one of .*; did you mean 'latency'\?"),
        (
            {"scope": "modle"},
            r"search\.scope is 'modle'; choose one of \['model', 'prunable'\]; did you mean 'model'\?",
        ),
        ({"allocation": "unifed"}, r"search\.allocation is 'unifed'; choose one of .*; did you mean 'unified'\?"),
        ({"floor": {"vision": -0.1}}, r"search\.floor is -0\.1 for 'vision'; it is a fraction removed, from 0 to 1"),
        ({"ceiling": {"*": 50}}, r"search\.ceiling is 50 for '\*'; it is a fraction removed, from 0 to 1"),
        (
            {"floor": {"*": 0.5}, "ceiling": {"*": 0.4}},
            r"search\.floor is 0\.5 and search\.ceiling 0\.4 for '\*'; the floor",
        ),
        ({"multiple_of": {"neurons": 8}}, r"names kind 'neurons'; there are \[.*\]; did you mean 'neuron'\?"),
        ({"multiple_of": {"neuron": 0}}, r"search\.multiple_of is 0 for 'neuron'; it is a whole number, at least 1"),
        ({"multiple_of": {"neuron": 8.0}}, r"search\.multiple_of is 8\.0 for 'neuron'"),
        (
            {"fractions": {"text": 0.5}},
            r"search\.fractions is set, but search\.allocation is 'unified'; set it to 'per_mod",
        ),
        ({"fractions": {"text": 1.0}, "allocation": "per_modality"}, r"search\.fractions is 1\.0 for 'text'; it is"),
        ({"fractions": {"text": 0.0}, "allocation": "per_modality"}, r"search\.fractions are all 0, so nothing"),
        ({"tolerance": 1.0}, r"search\.tolerance is 1\.0; it is a fraction of the target, from 0 to 1 \(exclusive\)"),
    ],
)
def test_messages_that_need_no_sites(settings_, text):
    with pytest.raises(ValueError, match=text):
        Budget(**{"removed": 0.5, **settings_})


@pytest.mark.parametrize(
    ("settings_", "text"),
    [
        ({"floor": {"txet": 0.1}}, r"search\.floor names 'txet'.*; did you mean 'text'\?"),
        (
            {"ceiling": {"fusion": 0.1}},
            r"search\.ceiling names 'fusion', which is neither a modality, of \['text', 'vision'\]",
        ),
        (
            {"fractions": {"fusion": 0.1}, "allocation": "per_modality"},
            r"search\.fractions names 'fusion', but the sites",
        ),
        ({"multiple_of": {"neuron": 64}}, r"site 'vision\.layers\.0\.mlp\.neuron' has only 60 units; use at most 40"),
        ({"floor": {"*": 1.0}}, r"can keep no number of its 16 units"),
        ({"removed": 0.999}, r"asks to remove .* at least one unit per site stays"),
        (
            {"fractions": {"vision": 0.5, "text": 0.25}, "allocation": "per_modality"},
            r"search\.removed is 0\.5, but search\.fractions imply 0\.4286 of the prunable params; set search\.removed",
        ),
    ],
)
def test_messages_that_need_sites(settings_, text):
    with pytest.raises(ValueError, match=text):
        check(Budget(**{"removed": 0.5, **settings_}), SITES, COST)


def test_what_needs_no_cost_can_be_checked_without_one():
    check_settings(Budget(0.5, "latency", ceiling={"vision": 0.5}), SITES)
    for settings_, text in (
        ({"ceiling": {"visoin": 0.5}}, "did you mean 'vision'"),
        ({"multiple_of": {"neuron": 999}}, "is 999 for kind 'neuron'"),
    ):
        with pytest.raises(ValueError, match=text):
            check_settings(Budget(0.5, "latency", **settings_), SITES)


def test_a_cost_that_nothing_saves_is_refused():
    free = ToyCost(SITES, dict.fromkeys({site.block for site in SITES}, 0))
    with pytest.raises(
        ValueError, match=r"^removing units saves no latency here: choose another search\.of, or, where"
    ):
        check(Budget(0.5, "latency"), SITES, free)


def test_other_messages():
    with pytest.raises(ValueError, match="there are no sites to cut"):
        check(Budget(0.5), [], COST)
    for share in (-0.1, 1.01, float("nan")):
        with pytest.raises(ValueError, match=r"share is .*; it is the share of the target to remove now, from 0 to 1"):
            select(ranked(0), SITES, COST, Budget(0.5), share)
    with pytest.raises(ValueError, match=r"no priorities for site 'vision\.layers\.0\.attention\.head_dim'"):
        select({}, SITES, COST, Budget(0.5))
    with pytest.raises(ValueError, match=r"have shape \(16,\), 16 of them not finite; it has 16 units"):
        select({**ranked(0), SITES[0].name: torch.full((16,), torch.nan)}, SITES, COST, Budget(0.5))


def test_removed_and_fractions_may_agree():
    whole = COST.prunable("params")
    implied = (0.5 * COST.prunable("params", "vision") + 0.25 * COST.prunable("params", "text")) / whole
    fractions = {"vision": 0.5, "text": 0.25}
    check(Budget(round(implied, 4), allocation="per_modality", fractions=fractions, tolerance=0.02), SITES, COST)
