"""First-order Taylor: a unit is worth the change of the loss, up or down, that removing it would make.

Source: Molchanov et al., "Pruning convolutional neural networks for resource efficient inference", ICLR 2017,
https://arxiv.org/abs/1611.06440, with the absolute value taken per optimizer step. The mask stands for the unit's
output, as in Michel et al., "Are sixteen heads really better than one?", NeurIPS 2019, https://arxiv.org/abs/1905.10650.
"""

from __future__ import annotations

from torch import Tensor

from upop.search.policies.base import GradientPolicy


class Taylor(GradientPolicy):
    """Worth = the sum over optimizer steps of ``|dL/dm * m|``, to first order the change of the loss without the unit.

    A unit that has faded earns little more, so what was once selected seldom comes back.
    """

    def worth(self, gradient: Tensor, mask: Tensor) -> Tensor:
        """Size of gradient times mask, ``(U,)``."""
        return (gradient * mask).abs()


POLICY = Taylor
