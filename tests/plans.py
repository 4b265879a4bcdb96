"""Random legal plans."""

from __future__ import annotations

import random
from collections.abc import Sequence

from upop.structure import Plan, Site


def random_plan(sites: Sequence[Site], seed: int) -> Plan:
    """A plan that keeps a random non-empty subset of the units of each site."""
    draw = random.Random(seed)
    keep = {}
    for site in sites:
        count = draw.randint(1, site.units)
        keep[site.name] = sorted(draw.sample(range(site.units), count))
    return Plan.of(keep, sites)
