"""Speed is measured turn by turn over a batch of the right size, memory as arithmetic says."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from upop.families import example_inputs
from upop.runs.timing import (
    Speed,
    bytes_of,
    compare_speed,
    extra_bytes,
    forward,
    order,
    random_batch,
    take_turns,
    vocabulary,
    weight_bytes,
)


class Clock:
    """Time that passes only while something is told to take it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def taking(self, name: str, seconds: Sequence[float]) -> Callable[[], None]:
        """Something that takes these times in turn, and its last time from then on."""
        left = list(seconds)

        def run() -> None:
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


class Layer(nn.Module):
    """Notes when it is called and with how much."""

    def __init__(self, calls: list[str], name: str, work: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.calls, self.name, self.work = calls, name, work
        self.shapes: set[tuple[int, ...]] = set()

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> Tensor:
        self.calls.append(self.name)
        self.shapes |= {tuple(pixel_values.shape), tuple(input_ids.shape)}
        large = torch.ones(self.work, self.work)
        return large @ large


def test_models_take_turns_and_the_larger_one_is_slower() -> None:
    calls: list[str] = []
    models = {"dense": Layer(calls, "dense", 600), "cut": Layer(calls, "cut", 30)}
    inputs = {"pixel_values": torch.zeros(1, 3, 4, 4, device="meta"), "input_ids": torch.zeros(1, 5, dtype=torch.long)}
    speed = compare_speed(models, inputs, batch_size=6, seconds=0.0, least_rounds=5)
    turns = [calls[-10:][start : start + 2] for start in range(0, 10, 2)]
    assert all(set(turn) == {"dense", "cut"} for turn in turns), "five timed rounds, each model once in each"
    assert models["cut"].shapes == {(6, 3, 4, 4), (6, 5)}
    assert speed["dense"].latency_ms > speed["cut"].latency_ms
    assert speed["dense"].throughput == pytest.approx(6 / (speed["dense"].latency_ms / 1000))
    assert speed["dense"].rounds == 5
    assert speed["dense"].latency_p90_ms >= speed["dense"].latency_ms


@pytest.mark.parametrize("count", range(1, 8))
def test_everyone_follows_everyone_equally_often(count: int) -> None:
    rounds = [order(count, number) for number in range(2 * count)]
    assert all(sorted(places) == list(range(count)) for places in rounds)
    pairs = Counter(pair for places in rounds for pair in itertools.pairwise(places))
    assert set(pairs) == set(itertools.permutations(range(count), 2))
    assert len(set(pairs.values())) <= 1
    assert len({places[0] for places in rounds}) == count, "everyone is first once"
    assert order(count, 2 * count) == order(count, 0)


def test_rounds_last_as_long_as_asked_for_and_follow_the_order() -> None:
    clock = Clock()
    told: list[tuple[int, float]] = []
    passes = {name: clock.taking(name, [took]) for name, took in {"a": 1.0, "b": 2.0, "c": 4.0}.items()}
    times = take_turns(passes, 20.0, clock=clock, tell=lambda *said: told.append(said))
    assert clock.calls[:6] == ["a", "a", "b", "b", "c", "c"], "two passes show that they are warm"
    expected = [["a", "b", "c"][place] for number in range(3) for place in order(3, number)]
    assert clock.calls[6:] == expected
    assert told == [(1, 7.0), (2, 14.0), (3, 21.0)]
    assert times == {"a": [1.0] * 3, "b": [2.0] * 3, "c": [4.0] * 3}
    assert [len(found) for found in take_turns(passes, 0.1, 4, clock).values()] == [4, 4, 4]


@pytest.mark.parametrize(
    ("warming", "passes"), [([9, 5, 3, 2.8], 4), ([5, 5], 2), ([5, 50], 2), ([2.0**-n for n in range(12)], 10)]
)
def test_warm_up_ends_when_passes_no_longer_get_faster(warming: list[float], passes: int) -> None:
    clock = Clock()
    times = take_turns({"a": clock.taking("a", warming)}, 0.0, 1, clock)
    assert len(clock.calls) == passes + 1
    assert times["a"] == [pytest.approx(warming[min(passes, len(warming) - 1)])], "the passes before are not among them"


@pytest.mark.parametrize("count", [1, 2, 5, 10, 11, 97])
def test_percentiles_are_those_of_numpy(count: int) -> None:
    clock = Clock()
    took = np.random.default_rng(count).uniform(1, 3, count)
    times = take_turns({"a": clock.taking("a", [9.0, 9.0, *took])}, 0.0, count, clock)["a"]
    speed = Speed.of(times, 4, torch.device("cpu"))
    assert speed.latency_ms == pytest.approx(1000 * np.median(took))
    assert speed.latency_p90_ms == pytest.approx(1000 * np.percentile(took, 90, method="higher"))
    assert speed.throughput == pytest.approx(4 / np.median(took))
    assert (speed.rounds, speed.batch_size) == (count, 4)


def test_batches_are_random_whole_and_the_same_every_time() -> None:
    model = tiny.build("clip")
    sample = example_inputs(model)
    assert vocabulary(model) == 50
    first, again = (random_batch(sample, 7, torch.device("cpu"), torch.bfloat16, vocabulary(model)) for _ in range(2))
    assert {name: tuple(value.shape) for name, value in first.items()} == {
        "pixel_values": (7, 3, 16, 16),
        "input_ids": (7, 12),
    }, "no mask: every token is attended to"
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert first["pixel_values"].dtype == torch.bfloat16
    assert 0.9 < first["pixel_values"].float().std() < 1.1
    assert 0 <= first["input_ids"].min() < first["input_ids"].max() < 50
    assert len(first["input_ids"].unique()) > 20


@pytest.mark.parametrize(("name", "words"), [("bert", 50), ("blip_vqa", 50), ("vit", 1), ("timm_vit", 1)])
def test_vocabulary(name: str, words: int) -> None:
    assert vocabulary(tiny.build(name)) == words


class Toy(nn.Module):
    """Two layers whose activations are easily counted."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(1000, 4000, bias=False), nn.Linear(4000, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(torch.relu(self.wide(x)))


@pytest.mark.parametrize("batch", [8, 32])
def test_memory_of_a_pass_is_what_arithmetic_says(batch: int) -> None:
    model, device = Toy(), torch.device("cpu")
    run = forward(model, {"x": torch.zeros(batch, 1000)})
    run()
    assert weight_bytes(model) == 4 * (1000 * 4000 + 4000 * 10)
    activations = 4 * batch * 4000
    assert extra_bytes(run, device) == 2 * activations, "before and after relu; the output comes when one is gone"
    assert extra_bytes(lambda: None, device) == 0


def test_what_is_shared_counts_once() -> None:
    whole = torch.zeros(10, 10)
    assert bytes_of([whole, whole[2:], whole.T, torch.zeros(3, dtype=torch.int8)]) == 403
    tied = Toy()
    tied.wide.weight = nn.Parameter(torch.zeros(4000, 10).T)
    tied.narrow.weight = tied.wide.weight
    tied.register_buffer("positions", torch.zeros(5, dtype=torch.long))
    assert weight_bytes(tied) == 4 * 40_000 + 40


def test_measuring_memory_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    extra_bytes(lambda: torch.zeros(5), torch.device("cpu"))
    assert capfd.readouterr() == ("", "")
