"""Which units go: policies say what units are worth, schedules how fast they go, budgets how many.

Tensors in, tensors out: nothing here knows a model or a trainer. One update of a search reads::

    policy = create("unified", sites)
    policy.collect(gradients, masks)                       # once per optimizer step
    scores = policy.scores()                               # then, every so many steps:
    ranked = priorities(scores, sites, budget.allocation)
    keep = select(ranked, sites, cost, budget, fraction("sine", step, steps))

Source: UPop, Shi et al., ICML 2023, https://arxiv.org/abs/2301.13741.
"""

from __future__ import annotations

from upop.search.alignment import AUTO, Price, align, device_multiples, price, select_aligned
from upop.search.allocation import priorities
from upop.search.budget import Budget, check, check_settings, select
from upop.search.policies import Policy, create, names
from upop.search.schedules import fraction

__all__ = [
    "AUTO",
    "Budget",
    "Policy",
    "Price",
    "align",
    "check",
    "check_settings",
    "create",
    "device_multiples",
    "fraction",
    "names",
    "price",
    "priorities",
    "select",
    "select_aligned",
]
