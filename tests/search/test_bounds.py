import pytest
from hypothesis import given
from hypothesis import strategies as st

from upop.search import bounds

from .toys import site, tower

FRACTION = st.integers(0, 20).map(lambda number: number / 20)


@given(st.integers(1, 40), st.integers(1, 9), FRACTION, FRACTION, st.sampled_from([0.0, 0.3, 1.0]))
def test_grid_against_brute_force(units, multiple, floor, ceiling, share):
    one = site("vision.layers.0.mlp", "neuron", units)
    found = bounds.grid(one, {"*mlp*": floor, "text": 1.0}, {"*": ceiling}, {"neuron": multiple}, share).tolist()
    allowed = []
    for kept in range(1, units + 1):
        gone = units - kept
        aligned = kept % multiple == 0 or kept == units
        # In twentieths (and tenths of the share), so that the reference is exact.
        if (
            aligned
            and gone * 200 >= round(floor * 20) * round(share * 10) * units
            and gone * 20 <= round(ceiling * 20) * units
        ):
            allowed.append(kept)
    assert found == allowed


def test_tightest_of_several_patterns_holds_and_modalities_are_no_patterns():
    one = site("vision.layers.0.mlp", "neuron", 10)
    assert bounds.grid(one, {"*": 0.1, "*.0.*": 0.3}, {"*": 0.9, "*neuron": 0.5, "vision": 0.0}, {}).tolist() == [
        5,
        6,
        7,
    ]
    assert bounds.matching({"vision": 0.5, "vision*": 0.2, "text*": 0.1}, one) == {"vision*": 0.2}


def test_selectors_that_select_nothing_raise():
    sites = tower("vision", 2, head_dims=4, neurons=6)
    bounds.check_keys("floor", {"vision": 0.1, "*.mlp.*": 0.1, sites[0].name: 0.2}, sites)
    with pytest.raises(
        ValueError, match=r"search\.floor names 'visoin', which is .* \['vision'\].*; did you mean 'vision'\?"
    ):
        bounds.check_keys("floor", {"visoin": 0.1}, sites)
    with pytest.raises(ValueError, match=r"search\.ceiling names 'text', .*\['vision.layers.0.attention.head_dim', "):
        bounds.check_keys("ceiling", {"text": 0.1}, sites)
    with pytest.raises(
        ValueError, match=r"search\.fractions names 'vison', but .* \['vision'\]; did you mean 'vision'"
    ):
        bounds.check_modalities("fractions", {"vison": 0.1}, sites)


def test_multiples_that_do_not_fit_raise():
    sites = tower("vision", 2, head_dims=4, neurons=6)
    bounds.check_multiples({"head_dim": 4, "neuron": 3}, sites)
    with pytest.raises(ValueError, match=r"names kind 'head', but the sites are of kinds \['head_dim', 'neuron'\]"):
        bounds.check_multiples({"head": 2}, sites)
    with pytest.raises(
        ValueError, match=r"is 64 for kind 'neuron', but site 'vision.*mlp.neuron' has only 6 .* at most 6"
    ):
        bounds.check_multiples({"neuron": 64}, sites)


def test_contradictions_at_a_site_raise():
    sites = tower("vision", 1, neurons=6)
    with pytest.raises(ValueError, match=r"can keep no number of its 6 units: search.floor {'\*': 1.0}"):
        bounds.check_grids(sites, {"*": 1.0}, {}, {})
    with pytest.raises(ValueError, match=r"search.ceiling {'vision\*': 0.2} and search.multiple_of 1 leave none"):
        bounds.check_grids(sites, {"*": 0.5}, {"vision*": 0.2}, {})
    with pytest.raises(ValueError, match=r"search.multiple_of 4 leave none"):
        bounds.check_grids(sites, {"*": 0.1}, {"*": 0.2}, {"neuron": 4})
