"""Cost models of tiny models, for the tests of every part of the cost."""

from __future__ import annotations

import pytest

from tests import tiny
from upop.cost import CostModel, measure
from upop.families import example_inputs, find_sites
from upop.structure import KINDS

MODELS = pytest.mark.parametrize("name", tiny.MODELS)


def cost_of(model, kinds=KINDS):
    sites = find_sites(model, kinds)
    return sites, CostModel(sites, measure(model, sites, example_inputs(model)))
