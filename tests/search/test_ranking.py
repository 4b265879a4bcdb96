import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from upop.search.ranking import Limit, Ranking, nearest, refine, smallest_step


def ranking_of(priorities, grids):
    return Ranking(
        {name: np.array(value, dtype=float) for name, value in priorities.items()},
        {name: np.array(value) for name, value in grids.items()},
    )


def additive(ranking, price):
    def removed(steps):
        kept = ranking.kept(steps)
        return sum(
            price[name] * (grid[-1] - kept[name]) for name, grid in zip(ranking.names, ranking.grids, strict=True)
        )

    return removed


TWO = ranking_of({"a": [3, 1, 2], "b": [1, 0, 9, 5]}, {"a": [1, 2, 3], "b": [2, 4]})


def test_steps_follow_the_list_and_round_up():
    # The list: b1, a1, b0, a2, a0, b3, b2 (1.0 is a tie: site order).
    kept = [TWO.kept(TWO.steps([length, length])) for length in range(8)]
    assert [one["a"] for one in kept] == [3, 3, 2, 2, 1, 1, 1, 1]
    assert [one["b"] for one in kept] == [4, 4, 4, 2, 2, 2, 2, 2]
    assert TWO.keep(TWO.steps([4, 3])) == {"a": (0,), "b": (2, 3)}
    assert TWO.keep(TWO.steps([0, 2])) == {"a": (0, 1, 2), "b": (0, 1, 2, 3)}


def test_moves_go_by_priority():
    whole = TWO.steps([0, 0])
    assert [TWO.kept(steps) for steps in TWO.moves(whole, -1)] == [{"a": 3, "b": 2}, {"a": 2, "b": 4}]
    assert TWO.moves(whole, 1) == []
    assert [TWO.kept(steps) for steps in TWO.moves(TWO.steps([7, 7]), 1)] == [{"a": 2, "b": 2}, {"a": 1, "b": 4}]


def test_smallest_step_names_its_site():
    removed = additive(TWO, {"a": 10, "b": 4})
    assert smallest_step(TWO, TWO.steps([0, 0]), removed) == ("b", 8)
    fixed = ranking_of({"a": [1, 2]}, {"a": [2]})
    assert smallest_step(fixed, fixed.steps([0]), additive(fixed, {"a": 1})) is None


@given(st.integers(0, 10_000), st.floats(0, 60))
@settings(max_examples=60, deadline=None)
def test_nearest_is_the_nearest_prefix(seed, target):
    random = np.random.default_rng(seed)
    ranking = ranking_of(
        {"a": random.integers(0, 6, 5), "b": random.random(4) * 6}, {"a": [1, 3, 5], "b": [1, 2, 3, 4]}
    )
    removed = additive(ranking, {"a": 7, "b": 3})
    costs = [removed(ranking.steps([length, length])) for length in range(10)]
    assert costs == sorted(costs)
    steps = nearest(ranking, removed, target)
    assert abs(removed(steps) - target) == min(abs(cost - target) for cost in costs)
    better = refine(ranking, steps, removed, target, 0.0)
    assert abs(removed(better) - target) <= abs(removed(steps) - target)


def test_refine_swaps_where_no_single_step_helps():
    ranking = ranking_of({"a": [0, 1], "b": [2, 3, 4]}, {"a": [1, 2], "b": [1, 2, 3]})
    removed = additive(ranking, {"a": 5, "b": 4})
    steps = nearest(ranking, removed, 4)
    assert removed(steps) == 5
    better = refine(ranking, steps, removed, 4, 0.0)
    assert ranking.kept(better) == {"a": 2, "b": 2}


def test_refine_takes_the_worst_of_equal_units_first():
    ranking = ranking_of({"a": [5, 6], "b": [1, 2], "c": [3, 4]}, {"a": [1, 2], "b": [1, 2], "c": [1, 2]})
    better = refine(ranking, ranking.steps([0, 0, 0]), additive(ranking, {"a": 1, "b": 1, "c": 1}), 1, 0.0)
    assert ranking.kept(better) == {"a": 2, "b": 1, "c": 2}


def test_limits_hold_a_part_back_and_push_it():
    ranking = ranking_of({"a": range(10), "b": range(10, 20)}, {"a": range(1, 11), "b": range(1, 11)})
    removed = additive(ranking, {"a": 1, "b": 1})
    cost_of = {name: additive(ranking, {"a": 0, "b": 0, name: 1}) for name in "ab"}
    ceiling = Limit(np.array([True, False]), cost_of["a"], 0.0, 3.0)
    floor = Limit(np.array([False, True]), cost_of["b"], 2.0, np.inf)
    assert ranking.kept(nearest(ranking, removed, 5)) == {"a": 5, "b": 10}
    assert ranking.kept(nearest(ranking, removed, 5, [ceiling])) == {"a": 7, "b": 8}
    assert ranking.kept(nearest(ranking, removed, 4, [floor])) == {"a": 8, "b": 8}
    steps = nearest(ranking, removed, 4.4, [ceiling, floor])
    better = refine(ranking, steps, removed, 7.0, 0.0, [ceiling, floor])
    assert ceiling.holds(better)
    assert floor.holds(better)
    assert removed(better) == 7
