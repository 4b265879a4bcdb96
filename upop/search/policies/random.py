"""Random: a unit is worth a number drawn once. The baseline that every other policy has to beat."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from upop.search.policies.base import Policy
from upop.structure import Site


class Random(Policy):
    """Worth = a standard normal number per unit, drawn once, so that a larger selection contains a smaller one.

    A site's draw depends on the seed, its name and its number of units only, not on which other sites there are.
    """

    def __init__(self, sites: Sequence[Site], seed: int = 0) -> None:
        super().__init__(sites, seed)
        self._draws = {name: _draw(name, units, seed) for name, units in self.units.items()}

    def scores(self, norms: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The numbers drawn; see :meth:`Policy.scores`."""
        return {name: value.clone() for name, value in self._draws.items()}

    def state_dict(self) -> dict[str, Any]:
        """The numbers drawn, so that a resumed run keeps them whatever its seed."""
        return {"draws": {name: value.clone() for name, value in self._draws.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back the numbers drawn; see :meth:`Policy.load_state_dict`."""
        self._draws = {name: value.clone() for name, value in self.checked(state["draws"], "draws").items()}


def _draw(name: str, units: int, seed: int) -> Tensor:
    """Numbers of one site, ``(U,)``, on the CPU."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))
    return torch.randn(units, generator=generator)


POLICY = Random
