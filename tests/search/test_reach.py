import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upop.search import bounds
from upop.search.budget import Budget
from upop.search.reach import check_reach, parts, reach

from .toys import ToyCost, tower

SITES = tower("vision", 1, head_dims=3, heads=2) + tower("text", 1, neurons=5)
COST = ToyCost(SITES, {"text.layers.0.mlp": 2})
FRACTION = st.integers(0, 10).map(lambda number: number / 10)


def every_plan():
    names = [site.name for site in SITES]
    for counts in itertools.product(*(range(1, site.units + 1) for site in SITES)):
        yield dict(zip(names, counts, strict=True))


@given(FRACTION, FRACTION, st.sampled_from([1, 2, 3]))
@settings(max_examples=40, deadline=None)
def test_reach_bounds_every_legal_plan(low, high, multiple):
    budget = Budget(0.5, floor={"*neuron": min(low, high)}, ceiling={"vision": high}, multiple_of={"neuron": multiple})
    grids = {site.name: bounds.grid(site, budget.floor, budget.ceiling, budget.multiple_of) for site in SITES}
    if any(not len(grid) for grid in grids.values()):
        return
    legal = [
        COST.removed(plan, "params")
        for plan in every_plan()
        if all(plan[name] in grid for name, grid in grids.items())
        and COST.removed(plan, "params", "vision") <= high * COST.prunable("params", "vision") + 1e-9
    ]
    least, most = reach(budget, parts(budget, SITES, COST)[0], COST)
    assert least == pytest.approx(min(legal))
    assert max(legal) <= most + 1e-9
    assert most - max(legal) < 4  # less than the largest step of the tower that the ceiling holds


def test_parts_and_their_targets():
    assert [(part.modality, part.target) for part in parts(Budget(0.5), SITES, COST)] == [(None, 8.0)]
    each = Budget(0.5, allocation="per_modality")
    assert [(part.modality, part.target) for part in parts(each, SITES, COST)] == [("vision", 3.0), ("text", 5.0)]
    one = Budget(None, allocation="per_modality", fractions={"text": 0.4})
    assert [(part.modality, part.target) for part in parts(one, SITES, COST)] == [("vision", 0.0), ("text", 4.0)]
    model = Budget(0.005, scope="model", allocation="per_modality")
    assert sum(part.target for part in parts(model, SITES, COST)) == pytest.approx(0.005 * COST.whole("params"))


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        (
            Budget(0.9),
            r"asks to remove 14 params \(0\.9 of the prunable params\), but between 0 and 13 \(0 to 0\.8125\)",
        ),
        (Budget(0.9), r"at least one unit per site stays, and what is no unit cannot go: lower search\.removed"),
        (
            Budget(0.7, ceiling={"text": 0.1, "*.head": 1.0}),
            r"to 0\.375\) can go; search\.ceiling\['text'\] = 0\.1 binds: loo",
        ),
        (
            Budget(0.7, ceiling={"text": 0.1, "*dim": 0}),
            r"\['text'\] = 0\.1 and search\.ceiling\['\*dim'\] = 0 bind: loosen them",
        ),
        (Budget(0.7, multiple_of={"neuron": 4}), r"search\.multiple_of\['neuron'\] = 4 binds: loosen it"),
        (Budget(0.1, floor={"vision": 0.5}), r"between 3 and 13 .* search\.floor\['vision'\] = 0\.5 binds: loosen it"),
        (Budget(0.1, floor={"*neuron": 0.6}), r"between 6 and 13 .* search\.floor\['\*neuron'\] = 0\.6 binds"),
        (Budget(0.5, scope="model"), r"0\.5 of the model params\), but between 0 and 13 \(0 to 0\.0128\) can go"),
        (
            Budget(0.5, floor={"vision": 0.9}),
            r"contradict each other for modality 'vision': at least 0\.9 .* at most 0\.8333",
        ),
        (
            Budget(0.7, ceiling={"text*": 0.4, "text": 0.4}),
            r"search\.ceiling\['text\*'\] = 0\.4 and search\.ceiling\['text'\] = 0\.4 bind",
        ),
        (
            Budget(0.5, floor={"text": 0.5}, ceiling={"text*": 0.3}),
            r"search\.floor and search\.ceiling contradict each other for modality 'text': at least 0\.5 of its params",
        ),
        (
            Budget(None, allocation="per_modality", fractions={"text": 0.95}),
            r"10 params \(0\.95 of the prunable text params\), but between 0 and 8 \(0 to 0\.8\) can go",
        ),
    ],
)
def test_messages(budget, text):
    def check_all():
        for part in parts(budget, SITES, COST):
            check_reach(budget, part, COST)

    with pytest.raises(ValueError, match=text):
        check_all()
