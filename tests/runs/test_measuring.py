"""Tables measured with a timer that counts parameters, so that every time is known in closed form; and one real one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests import tiny
from tests.plans import random_plan
from tests.runs.timers import Abacus
from upop.cost import CostModel, LatencySettings, LatencyTable, measure
from upop.families import example_inputs, find_sites
from upop.runs import measuring
from upop.runs.measuring import fastest, measure_latency, sizes_of, time_models
from upop.runs.replays import Replay
from upop.search import Budget, check, create, priorities, select
from upop.structure import KINDS, Plan, Site
from upop.surgery import shrink_

CPU = torch.device("cpu")
FACTS = {"device": "abacus", "multiple_of": {}}
SMALL = LatencySettings(batch_size=2, seconds=0.0)
NANOSECONDS = 1000  # of a parameter


def tables(model: nn.Module, kinds: Sequence[str] = ("head_dim", "neuron"), timer: object = None) -> tuple:
    sites = find_sites(model, kinds)  # type: ignore[arg-type]
    inputs = example_inputs(model)
    table = measure_latency(model, sites, inputs, SMALL, CPU, FACTS, timer or Abacus())  # type: ignore[arg-type]
    return sites, CostModel(sites, measure(model, sites, inputs), table)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        *((name, ("head_dim", "neuron")) for name in tiny.MODELS),
        ("clip", KINDS),
        ("bert", ("neuron",)),
        ("timm_vit", ("head", "neuron")),
    ],
)
def test_a_timer_of_parameters_gives_the_parameters(name: str, kinds: Sequence[str]) -> None:
    model = tiny.build(name)
    before = tiny.outputs(model)
    sites, cost = tables(model, kinds)
    assert isinstance(cost.latency, LatencyTable)
    assert cost.whole("latency") == NANOSECONDS * cost.whole("params")
    seen = {site.block: site.modality for site in sites}
    for seed, modality in itertools.product(range(3), (None, *set(seen.values()))):
        kept = random_plan(sites, seed).kept()
        times = cost.removed(kept, "latency", modality)
        assert times == pytest.approx(NANOSECONDS * cost.removed(kept, "params", modality), rel=1e-6), (
            cost.latency.scale
        )
    assert torch.equal(tiny.outputs(model), before), "the model is left as it was"


@pytest.mark.parametrize("scope", ["prunable", "model"])
@pytest.mark.parametrize("allocation", ["unified", "per_modality", "uniform"])
def test_a_plan_meets_a_budget_of_latency(scope: str, allocation: str) -> None:
    model = tiny.build("clip")
    sites, cost = tables(model)
    limits = {"ceiling": {"text": 0.6, "vision*neuron": 0.7}, "floor": {"vision": 0.2}}
    removed = 0.4 if scope == "prunable" else 0.3
    budget = Budget(removed, "latency", scope, allocation=allocation, tolerance=0.02, **limits)  # type: ignore[arg-type]
    check(budget, sites, cost)
    ranked = priorities(create("random", sites).scores(), sites, allocation)
    keep = select(ranked, sites, cost, budget)
    kept = {name: len(units) for name, units in keep.items()}
    base = cost.prunable("latency") if scope == "prunable" else cost.whole("latency")
    assert cost.removed(kept, "latency") == pytest.approx(removed * base, rel=0.02)
    text, vision = (cost.removed(kept, "latency", one) / cost.prunable("latency", one) for one in ("text", "vision"))  # type: ignore[arg-type]
    assert text <= 0.6 + 1e-6
    assert vision >= 0.2 - 1e-6
    shrink_(model, sites, Plan.of(keep, sites))
    left = sum(parameter.numel() for parameter in model.parameters())
    assert cost.remaining(kept, "latency") == pytest.approx(NANOSECONDS * left, rel=1e-6), (
        "as the cut model would be timed"
    )


def test_fractions_per_modality_are_met_in_latency() -> None:
    sites, cost = tables(tiny.build("clip"))
    fractions = {"vision": 0.3, "text": 0.5}
    budget = Budget(None, "latency", allocation="per_modality", fractions=fractions, tolerance=0.03)
    check(budget, sites, cost)
    keep = select(priorities(create("random", sites).scores(), sites, "per_modality"), sites, cost, budget)
    kept = {name: len(units) for name, units in keep.items()}
    for modality, removed in fractions.items():
        own = cost.removed(kept, "latency", modality) / cost.prunable("latency", modality)
        assert own == pytest.approx(removed, rel=0.03)


def test_parts_that_are_alike_are_timed_once() -> None:
    timer = Abacus()
    _, cost = tables(tiny.build("clip"), timer=timer)
    curves = cost.latency.curves
    assert len(curves) == 4, "attention and MLP of two towers"
    assert (timer.turns, timer.replays) == (1, sum(curve.times.size for curve in curves) + 2), "and two whole models"
    assert len(cost.latency.parts) == 2 * (2 + 3)


class Skewed(Abacus):
    """Whole models take ``factor`` of what their parts' times say."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def __call__(self, replays: Sequence[Replay], seconds: float) -> list[float]:
        times = super().__call__(replays, seconds)
        return [*times[:-2], *(self.factor * time for time in times[-2:])]


def test_parts_are_scaled_to_what_the_model_saves() -> None:
    for factor in (0.5, 3.0):
        sites, cost = tables(tiny.build("clip"), timer=Skewed(factor))
        assert cost.latency.scale == pytest.approx(factor)
        assert cost.whole("latency") == factor * NANOSECONDS * cost.whole("params")
        kept = random_plan(sites, 1).kept()
        expected = factor * NANOSECONDS * cost.removed(kept, "params")
        assert cost.removed(kept, "latency") == pytest.approx(expected, rel=1e-5)


class Constant(Abacus):
    """Cutting saves nothing, or only within the parts."""

    def __init__(self, parts_too: bool) -> None:
        super().__init__()
        self.parts_too = parts_too

    def __call__(self, replays: Sequence[Replay], seconds: float) -> list[float]:
        times = super().__call__(replays, seconds)
        return [*([0.001] * len(times) if self.parts_too else times)[:-2], 0.001, 0.001]


@pytest.mark.parametrize("parts_too", [True, False])
def test_a_model_that_gets_no_faster_is_refused(parts_too: bool) -> None:
    sites, cost = tables(tiny.build("clip"), timer=Constant(parts_too))
    assert cost.prunable("latency") == 0
    with pytest.raises(ValueError, match=r"removing units saves no latency here: .* a larger batch \(search\.latency"):
        check(Budget(0.4, "latency"), sites, cost)


def test_parts_never_cost_more_than_the_model() -> None:
    class Odd(Abacus):
        def __call__(self, replays: Sequence[Replay], seconds: float) -> list[float]:
            return [*super().__call__(replays, seconds)[:-2], 0.001, 0.0001]

    _, cost = tables(tiny.build("clip"), timer=Odd())
    assert 0.999 * cost.whole("latency") < cost.prunable("latency") <= cost.whole("latency")


def site(units: int, kind: str = "neuron") -> Site:
    return SimpleNamespace(units=units, kind=kind)  # type: ignore[return-value]


def test_sizes_that_are_timed() -> None:
    assert sizes_of(site(7), {}, 10) == (1, 2, 3, 4, 5, 6, 7)
    free = sizes_of(site(3072), {}, 10)
    assert (free[0], free[-1], len(free)) == (1, 3072, 11)
    assert all(size % 2 for size in free[:-1]), "as a free search leaves them"
    np.testing.assert_allclose(np.diff(free), 307, atol=3)
    aligned = sizes_of(site(3072), {"neuron": 64, "head_dim": 8}, 10)
    assert (aligned[0], aligned[-1]) == (1, 3072)
    assert all(size % 64 == 0 for size in aligned[1:])
    assert sizes_of(site(64, "head_dim"), {"head_dim": 8}, 10) == (1, 8, 16, 24, 32, 40, 48, 56, 64)
    assert sizes_of(site(12, "head"), {}, 5) == (1, 3, 5, 7, 9, 12)


class Clock:
    """Stands still but for what runs; every turn but one is disturbed."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_fastest_turn_counts_and_short_replays_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    turns: list[int] = []

    class Sleeper(nn.Module):
        def __init__(self, takes: float) -> None:
            super().__init__()
            self.takes = takes

        def forward(self) -> None:
            turns.append(1)
            clock.now += self.takes * (1 if len(turns) % 3 else 1.5)

    monkeypatch.setattr(measuring, "timed", lambda replay: timed(replay, clock))
    real = measuring.take_turns
    monkeypatch.setattr(
        measuring, "take_turns", lambda passes, seconds, least, tell: real(passes, seconds, least, clock, tell)
    )
    from upop.runs.timing import timed

    replays = [Replay(Sleeper(takes), [((), {})], CPU) for takes in (0.5, 0.0005)]
    found = fastest(replays, 0.0)
    assert found[0] == pytest.approx(0.5)
    assert found[1] == pytest.approx(0.0005, rel=0.35)
    assert replays[0].times == 1
    assert replays[1].times in (7, 10)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_real_measurement_has_the_form_of_a_table(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Says nothing of speed: tiny models are as fast as the interpreter."""
    monkeypatch.setattr(measuring, "LEAST_SECONDS", 1e-4)
    monkeypatch.setattr(measuring, "POINTS", {1: 4})
    model = tiny.build("clip")
    sites, inputs = find_sites(model), example_inputs(model)
    settings = LatencySettings(batch_size=2, dtype=dtype, seconds=0.0)  # type: ignore[arg-type]
    table = measure_latency(model, sites, inputs, settings, CPU, FACTS)
    assert next(model.parameters()).dtype == torch.float32
    cost = CostModel(sites, measure(model, sites, inputs), LatencyTable.from_dict(table.to_dict()))
    assert cost.whole("latency") > 0
    removed = [cost.removed({one.name: count for one in sites}, "latency") for count in range(1, 9)]
    assert removed == sorted(removed, reverse=True), "more units kept never cost less"
    assert all(0 <= time <= cost.whole("latency") for time in removed)
    assert (np.array([curve.times.min() for curve in table.curves]) > 0).all()
    times = time_models({"dense": model, "same": tiny.build("clip")}, inputs, settings, CPU)
    assert list(times) == ["dense", "same"]
    assert min(times.values()) > 0
    assert next(model.parameters()).dtype == measuring.DTYPES[dtype]
