"""Magnitude: a unit is worth the size of its weights. The baseline that needs no gradients.

Source: Han et al., "Learning both weights and connections for efficient neural networks", NeurIPS 2015,
https://arxiv.org/abs/1506.02626, for whole units instead of single weights.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from upop.search.policies.base import Policy


class Magnitude(Policy):
    """Worth = L2 norm of all weights that a unit owns, as the caller measures (and normalises) it."""

    needs_norms = True

    def scores(self, norms: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The norms given; see :meth:`Policy.scores`."""
        return {name: value.clone() for name, value in self.checked(norms, "norms").items()}


POLICY = Magnitude
