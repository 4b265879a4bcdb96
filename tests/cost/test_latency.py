"""Tables of times: interpolation by brute force, monotone whatever was measured, and the files they live in."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import tiny
from tests.cost.costing import cost_of
from tests.plans import random_plan
from upop.cost import CostModel, Curve, LatencySettings, LatencyTable
from upop.structure import Site

TIME = st.integers(0, 10**6).map(float)
SIZES = st.sets(st.integers(2, 40), max_size=6).map(lambda found: (1, *sorted(found)))


def table_of(sites: list[Site], nanoseconds: int = 10, scale: float = 1.0, whole: int = 10**9) -> LatencyTable:
    """A table in closed form: a block costs ``nanoseconds`` a unit, and one with two sites the product of both."""
    blocks: dict[str, list[Site]] = {}
    for site in sites:
        blocks.setdefault(site.block, []).append(site)
    curves = []
    for own in blocks.values():
        sizes = tuple(tuple(sorted({1, site.units // 2, site.units})) for site in own)
        curves.append(Curve(sizes, nanoseconds * np.array(np.outer(*sizes) if len(own) == 2 else sizes[0], float)))
    axes = {block: tuple(site.name for site in own) for block, own in blocks.items()}
    return LatencyTable(
        {"device": "abacus"}, whole, scale, tuple(curves), dict(zip(blocks, range(99), strict=False)), axes
    )


def padded(curve: Curve, at: tuple[int, ...]) -> float:
    """Time of the fastest measured size that is at least as large, at a measured size."""
    larger = [
        time
        for sizes, time in zip(itertools.product(*curve.sizes), curve.times.flat, strict=True)
        if all(size >= least for size, least in zip(sizes, at, strict=True))
    ]
    return min(larger)


def reference(curve: Curve, kept: tuple[int, ...]) -> float:
    """(Bi)linear interpolation between the measured sizes around ``kept``, the slow way."""
    corners = []
    for sizes, count in zip(curve.sizes, kept, strict=True):
        count = max(count, 1)
        low = max(size for size in sizes if size <= count)
        high = min(size for size in sizes if size >= count)
        upper = 0.0 if low == high else (count - low) / (high - low)
        corners.append([(low, 1 - upper), (high, upper)])
    total = 0.0
    for corner in itertools.product(*corners):
        weight = float(np.prod([part for _, part in corner]))
        total += weight * padded(curve, tuple(size for size, _ in corner))
    return total - padded(curve, (1,) * len(kept))


@given(SIZES, st.data())
def test_one_axis_against_brute_force(sizes, data):
    curve = Curve((sizes,), np.array(data.draw(st.lists(TIME, min_size=len(sizes), max_size=len(sizes)))))
    times = curve.above_least()
    assert times.shape == (sizes[-1] + 1,)
    np.testing.assert_allclose(times, [reference(curve, (kept,)) for kept in range(sizes[-1] + 1)], atol=1e-6)
    assert times[0] == times[1] == 0
    assert (np.diff(times) >= 0).all(), "it never falls when more units are kept"
    assert curve.units == (sizes[-1],)


@given(SIZES, SIZES, st.data())
def test_two_axes_against_brute_force(heads, head_dims, data):
    count = len(heads) * len(head_dims)
    times = np.array(data.draw(st.lists(TIME, min_size=count, max_size=count))).reshape(len(heads), len(head_dims))
    curve = Curve((heads, head_dims), times)
    found = curve.above_least()
    assert found.shape == (heads[-1] + 1, head_dims[-1] + 1)
    for kept in itertools.product({0, 1, heads[-1] // 2, heads[-1]}, {0, 1, head_dims[-1] // 3, head_dims[-1]}):
        assert found[kept] == pytest.approx(reference(curve, kept), abs=1e-6)
    assert (np.diff(found, axis=0) >= -1e-9).all()
    assert (np.diff(found, axis=1) >= -1e-9).all()


def test_the_whole_part_stays_as_it_was_measured():
    curve = Curve(((1, 57, 64),), np.array([10.0, 90.0, 50.0]))  # an odd size that is slower than a larger even one
    assert curve.above_least()[[1, 57, 64]].tolist() == [0, 40, 40]


@pytest.mark.parametrize("kinds", [("neuron",), ("head_dim", "neuron"), ("head", "head_dim", "neuron")])
def test_latency_of_a_plan_in_closed_form(kinds):
    sites, counted = cost_of(tiny.build("clip"), kinds)
    cost = counted.with_latency(table_of(sites, 10, scale=2.0))
    blocks = {site.block: [one for one in sites if one.block == site.block] for site in sites}

    def time(kept, modality=None):
        units = [
            [kept.get(one.name, one.units) for one in own]
            for own in blocks.values()
            if modality in (None, own[0].modality)
        ]
        return sum(20 * (np.prod(counts) - 1) for counts in units)

    for seed in range(5):
        kept = random_plan(sites, seed).kept()
        if kinds == ("head", "head_dim", "neuron"):  # bilinear between sizes, exact at them
            kept = {
                name: 1 if seed % 2 else max(count // 2, 1)
                for name, count in {one.name: one.units for one in sites}.items()
            }
        for modality in (None, "vision", "text"):
            assert cost.removed(kept, "latency", modality) == time({}, modality) - time(kept, modality)
        assert cost.remaining(kept, "latency") == 10**9 - cost.removed(kept, "latency")
        shares = cost.shares(kept)
        assert sum(share.latency_removed for share in shares) == cost.removed(kept, "latency")
        assert sum(share.latency for share in shares) == cost.prunable("latency") == time({})
        assert [share.latency for share in counted.shares(kept)] == [None] * len(shares)
    assert cost.currencies == ("params", "flops", "latency")
    assert cost.whole("latency") == 10**9
    assert cost.with_latency(None).currencies == counted.currencies == ("params", "flops")


def test_latency_that_was_not_measured_is_refused():
    sites, cost = cost_of(tiny.build("vit"))
    for ask in (cost.whole, cost.prunable, lambda it: cost.removed({}, it), lambda it: cost.remaining({}, it)):
        with pytest.raises(ValueError, match="the latency of this model was not measured; set search.of to 'latency'"):
            ask("latency")
    measured = cost.with_latency(table_of(sites))
    with pytest.raises(ValueError, match=r"unknown currency 'time'; known: \['flops', 'latency', 'params'\]"):
        measured.whole("time")


def test_a_table_of_another_model_is_refused():
    sites, cost = cost_of(tiny.build("vit"))
    others, _ = cost_of(tiny.build("clip"))
    with pytest.raises(
        ValueError, match=r"the latency table has None units at site .*it knows the sites \['text_model"
    ):
        CostModel(sites, cost.measured, table_of(others))
    with pytest.raises(ValueError, match="measure it for this model and these units"):
        cost.with_latency(table_of([site for site in sites if site.kind == "head_dim"]))


def test_a_table_survives_its_file(tmp_path):
    sites, cost = cost_of(tiny.build("clip"))
    table = table_of(sites, 7, scale=1.25)
    table.save(tmp_path / "deep" / "table.json")
    again = LatencyTable.load(tmp_path / "deep" / "table.json")
    assert again.to_dict() == table.to_dict()
    kept = random_plan(sites, 3).kept()
    prices = [cost.with_latency(one).removed(kept, "latency") for one in (table, again)]
    assert prices[0] == prices[1] > 0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": 9}, "format 9; this version reads format 1"),
        ({"whole": None}, "its whole is None and its scale 1.0; they are nanoseconds and a factor"),
        ({"whole": 0}, "its whole is 0"),
        ({"scale": -1}, "its scale -1"),
        ({"scale": float("nan")}, "its scale nan"),
        ({"curves": 3}, "it holds something in another form"),
        ({"curves": [{"sizes": [[1, 2]]}]}, "it lacks 'times'"),
        ({"curves": [{"sizes": [[2, 3]], "times": [1, 2]}]}, r"sizes \[2, 3\] are not ascending from 1"),
        ({"curves": [{"sizes": [[1, "x"]], "times": [1, 2]}]}, r"sizes \[1, 'x'\] are not ascending from 1"),
        ({"curves": [{"sizes": [[1, 2]], "times": [1]}]}, r"times of shape \(1,\) are not one finite number for each"),
        ({"curves": [{"sizes": [[1]], "times": [float("inf")]}]}, "are not one finite number"),
        ({"blocks": {"mlp": {"curve": 99, "sites": ["a"]}}}, "block 'mlp' has 1 sites and curve 99"),
        ({"blocks": {"mlp": {"curve": 0, "sites": []}}}, "block 'mlp' has 0 sites"),
        ({"blocks": {"mlp": {"sites": []}}}, "it lacks 'curve'"),
        ({"setting": None}, "it holds something in another form"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, change, text):
    sites, _ = cost_of(tiny.build("vit"), ("neuron",))
    (tmp_path / "table.json").write_text(json.dumps(table_of(sites).to_dict() | change))
    with pytest.raises(ValueError, match=f"table.json' is not a latency table that this version reads: .*{text}"):
        LatencyTable.load(tmp_path / "table.json")


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 9999, "\xff"])
def test_what_is_no_json_is_refused(tmp_path, text):
    (tmp_path / "table.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="is not a latency table that this version reads"):
        LatencyTable.load(tmp_path / "table.json")


def test_settings():
    assert LatencySettings().batch_size == 32
    with pytest.raises(ValueError, match=r"^search.latency.batch_size is 0; give 1 sample or more$"):
        LatencySettings(batch_size=0)
    with pytest.raises(ValueError, match=r"search.latency.dtype is 'bf61'; choose one of .*; did you mean 'bf16'\?"):
        LatencySettings(dtype="bf61")
    with pytest.raises(ValueError, match="search.latency.seconds is -1; give the time to measure for, 0 or more"):
        LatencySettings(seconds=-1)
