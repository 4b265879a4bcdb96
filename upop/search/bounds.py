"""How many units a site may keep: at least one, in whole multiples, between its floor and its ceiling.

The paper (UPop, https://arxiv.org/abs/2301.13741) knows only the first; the others are ours. A floor or ceiling is the
fraction removed, at least or at most; its key is a modality or a glob over site names.

Shapes: ``U`` units of a site, ``G`` counts that it may keep.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from upop.messages import closest, some
from upop.structure import KINDS, MODALITIES, Kind, Site

# Slack for float noise, in units: 0.3 of 10 units are 3, not 2.9999999999999996.
NOISE = 1e-9


def matching(limits: Mapping[str, float], site: Site) -> dict[str, float]:
    """The entries of a floor or ceiling whose key is a glob that matches the site's name; a modality is no glob."""
    return {key: value for key, value in limits.items() if key not in MODALITIES and fnmatchcase(site.name, key)}


def grid(
    site: Site,
    floor: Mapping[str, float],
    ceiling: Mapping[str, float],
    multiple_of: Mapping[Kind, int],
    share: float = 1.0,
) -> NDArray[np.int64]:
    """Numbers of units that the site may keep, ``(G,)``, ascending; empty where the limits contradict each other.

    These are the multiples of ``multiple_of``, and all units, even where that is no multiple.

    Args:
        site: The site.
        floor: At least this fraction of the units removed, by glob; of several that match, the largest holds.
        ceiling: At most this fraction removed, by glob; of several that match, the smallest holds.
        multiple_of: Multiple that the kept units are rounded up to, by kind.
        share: What the floor is scaled by, from 0 to 1; the ceiling is not.
    """
    least = share * max(matching(floor, site).values(), default=0.0)
    most = min(matching(ceiling, site).values(), default=1.0)
    low = site.units - math.floor(most * site.units + NOISE)
    high = site.units - math.ceil(least * site.units - NOISE)
    multiple = multiple_of.get(site.kind, 1)
    counts = np.arange(multiple, site.units + 1, multiple, dtype=np.int64)
    if site.units % multiple:
        counts = np.append(counts, site.units)
    return counts[(counts >= low) & (counts <= high)]


def check_keys(what: str, limits: Mapping[str, float], sites: Sequence[Site]) -> None:
    """Refuse a key that selects nothing.

    Args:
        what: Name of the setting, for the message.
        limits: Floor or ceiling: a fraction by modality or glob over site names.
        sites: All sites.

    Raises:
        ValueError: If a key is neither the modality of a site nor a glob that matches a site's name.
    """
    present = sorted({site.modality for site in sites})
    names = [site.name for site in sites]
    for key in limits:
        if key not in present and not any(matching({key: 0.0}, site) for site in sites):
            raise ValueError(
                f"search.{what} names {key!r}, which is neither a modality, of {present}, nor a pattern that matches a "
                f"site, of {some(sorted(names))}{closest(key, [*present, *names])}"
            )


def check_modalities(what: str, given: Mapping[str, float], sites: Sequence[Site]) -> None:
    """Refuse a key that is not the modality of any site.

    Args:
        what: Name of the setting, for the message.
        given: A number by modality.
        sites: All sites.

    Raises:
        ValueError: If a key is not the modality of a site.
    """
    present = sorted({site.modality for site in sites})
    for key in given:
        if key not in present:
            raise ValueError(
                f"search.{what} names {key!r}, but the sites have the modalities {present}{closest(key, present)}"
            )


def check_multiples(multiple_of: Mapping[Kind, int], sites: Sequence[Site]) -> None:
    """Refuse a multiple for a kind that no site has, or larger than a site.

    Args:
        multiple_of: Multiple that the kept units are rounded up to, by kind.
        sites: All sites.

    Raises:
        ValueError: If it is so.
    """
    present = [kind for kind in KINDS if any(site.kind == kind for site in sites)]
    for kind, multiple in multiple_of.items():
        if kind not in present:
            raise ValueError(
                f"search.multiple_of names kind {kind!r}, but the sites are of kinds {sorted(present)}"
                f"{closest(kind, present)}"
            )
        for site in sites:
            if site.kind == kind and multiple > site.units:
                raise ValueError(
                    f"search.multiple_of is {multiple} for kind {kind!r}, but site {site.name!r} has only {site.units} "
                    f"units; use at most {min(one.units for one in sites if one.kind == kind)}"
                )


def check_grids(
    sites: Sequence[Site],
    floor: Mapping[str, float],
    ceiling: Mapping[str, float],
    multiple_of: Mapping[Kind, int],
) -> None:
    """Refuse limits that leave a site no number of units to keep; the arguments are those of :func:`grid`.

    Raises:
        ValueError: If floor, ceiling and multiple contradict each other at a site.
    """
    for site in sites:
        if len(grid(site, floor, ceiling, multiple_of)):
            continue
        low, high = matching(floor, site), matching(ceiling, site)
        raise ValueError(
            f"site {site.name!r} can keep no number of its {site.units} units: search.floor {low}, search.ceiling "
            f"{high} and search.multiple_of {multiple_of.get(site.kind, 1)} leave none, and at least 1 has to stay; "
            "loosen one of them"
        )
