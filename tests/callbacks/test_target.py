"""What a search takes: its facts and words; budgets and multiples are tested with the search and in tests/search."""

from __future__ import annotations

import pytest

from tests import tiny
from upop.callbacks.target import Target, returned
from upop.cost import CostModel, measure
from upop.families import example_inputs, find_sites
from upop.structure import Plan


def target(multiple_of: dict[str, int] | str | None = None) -> Target:
    made = Target(0.5, "params", "prunable", multiple_of, None, None, "unified", None, 0.05)
    model = tiny.build("vit")
    sites = find_sites(model, ("neuron",))
    made.bind(sites, CostModel(sites, measure(model, sites, example_inputs(model))), "cpu")
    return made


def test_what_a_plan_removes_in_words_and_numbers() -> None:
    made = target()
    keep = {site.name: tuple(range(12)) for site in made.sites}
    plan = Plan.of(keep, made.sites, {})
    assert made.progress(plan)["removed/params"] == 0.75
    assert made.progress(None)["removed/params"] == 0.0
    assert made.told(plan) == "75.0% of the prunable parameters"
    dense, gone = made.cost.whole("params"), 2 * 36 * (32 + 1 + 32)
    assert made.facts(keep, None)["params"] == {"dense": dense, "left": dense - gone}
    assert "multiple_of" not in made.facts(keep, None)


def test_multiples_are_those_given_or_those_of_the_device() -> None:
    assert target({"neuron": 4}).budget.multiple_of == {"neuron": 4}
    assert target("auto").budget.multiple_of == {"neuron": 8}
    with pytest.raises(ValueError, match=r"search.multiple_of is 'most'; give 'auto', or a multiple by kind, such as"):
        target("most")


def test_units_that_come_back_are_counted() -> None:
    made = target()
    one, two = ({site.name: units for site in made.sites} for units in ((0, 1, 2), (1, 2, 3, 4)))
    assert returned(None, one) == 0
    assert returned(Plan.of(one, made.sites, {}), two) == 4, "units 3 and 4 at two sites"
