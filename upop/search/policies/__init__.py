"""What units are worth. A policy is one file of this folder that defines a class and names it ``POLICY``.

Files whose name starts with an underscore, and ``base``, are no policies. There is no other registry.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence

from upop.messages import closest
from upop.search.policies.base import Policy
from upop.structure import Site

__all__ = ["Policy", "create", "names"]


def names() -> list[str]:
    """Names of all policies, sorted: the files of this folder."""
    found = [module.name for module in pkgutil.iter_modules(__path__)]
    return sorted(name for name in found if name != "base" and not name.startswith("_"))


def create(name: str, sites: Sequence[Site], seed: int = 0) -> Policy:
    """The policy that the file ``name`` of this folder defines.

    Args:
        name: Name of the policy.
        sites: Sites whose units it scores.
        seed: Seed of everything random in it.

    Raises:
        ValueError: If there is no such policy.
    """
    if name not in names():
        raise ValueError(f"search.policy is {name!r}; choose one of {names()}{closest(str(name), names())}")
    kind: type[Policy] = importlib.import_module(f"{__name__}.{name}").POLICY
    return kind(sites, seed)
