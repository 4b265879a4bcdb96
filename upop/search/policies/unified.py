"""The paper's policy: a unit is worth what the loss would rise if it shrank.

Source: UPop, Shi et al., ICML 2023, https://arxiv.org/abs/2301.13741. Unlike the authors' code, which with mixed
precision looks at one mini-batch only, the gradients are always summed in fp32 over the whole search; and there is no
sparsity loss on the masks, which adds the same to every score and has no effect.
"""

from __future__ import annotations

from torch import Tensor

from upop.search.policies.base import GradientPolicy


class Unified(GradientPolicy):
    """Worth = minus the sum of the signed dL/dm: where the sum is large, shrinking the unit lowers the loss."""

    def worth(self, gradient: Tensor, mask: Tensor) -> Tensor:
        """Minus the gradient, ``(U,)``."""
        return -gradient


POLICY = Unified
