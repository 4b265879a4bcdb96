"""What every policy shares: it sees mask gradients or weight norms, and says what each unit is worth.

A policy knows no model and no clock: the caller decides when to collect and when to ask.

Shapes: ``U`` units of a site.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from upop.messages import some
from upop.structure import Site


class Policy(ABC):
    """Scores the units of all sites.

    Args:
        sites: Sites whose units are scored.
        seed: Seed of everything random in it.

    Attributes:
        needs_gradients: Whether :meth:`collect` has to be called once per optimizer step.
        needs_norms: Whether :meth:`scores` needs the norms of the weights.
        units: Number of units by site name.
        seed: The seed given.
    """

    needs_gradients: ClassVar[bool] = False
    needs_norms: ClassVar[bool] = False

    def __init__(self, sites: Sequence[Site], seed: int = 0) -> None:
        self.units = {site.name: site.units for site in sites}
        self.seed = seed

    def collect(self, gradients: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:  # noqa: B027 (may be unused)
        """Take in one optimizer step. A policy that needs no gradients ignores it.

        Args:
            gradients: dL/dm by site name, ``(U,)``, fp32, unscaled, averaged over ranks, finite.
            masks: Mask by site name, ``(U,)``, at which the gradients were taken.

        Raises:
            ValueError: If a site is missing or has another number of units.
        """

    @abstractmethod
    def scores(self, norms: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Worth of each unit by site name, ``(U,)``, fp32; higher means keep.

        Args:
            norms: Norm of the weights that each unit owns, by site name, ``(U,)``; for policies with ``needs_norms``.

        Raises:
            ValueError: If norms are needed and missing, or have another number of units.
        """

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on after an interruption: tensors on the CPU and whole numbers."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 (may be unused)
        """Take back what :meth:`state_dict` gave.

        Raises:
            ValueError: If it is of other sites.
        """

    def checked(self, values: Mapping[str, Tensor] | None, what: str) -> dict[str, Tensor]:
        """``values`` of every site, detached and in fp32 on their own device, ``(U,)`` each.

        Args:
            values: A vector per site.
            what: What they are, for the message.

        Raises:
            ValueError: If a site is missing or has another number of units.
        """
        found = {}
        for name, units in self.units.items():
            if values is None or name not in values:
                given = "nothing" if values is None else some(sorted(values))
                raise ValueError(f"no {what} for site {name!r}: given {given}; give {what} for every site")
            if values[name].shape != (units,):
                raise ValueError(
                    f"{what} of site {name!r} have shape {tuple(values[name].shape)!r}; it has {units} units"
                )
            found[name] = values[name].detach().to(torch.float32)
        return found


class GradientPolicy(Policy):
    """A policy whose scores are a sum over optimizer steps, in fp32 over the whole search.

    Before the first step all scores are 0. The sums live where the gradients do.

    Attributes:
        steps: Optimizer steps collected so far.
    """

    needs_gradients = True

    def __init__(self, sites: Sequence[Site], seed: int = 0) -> None:
        super().__init__(sites, seed)
        self.steps = 0
        self._sums = {name: torch.zeros(units) for name, units in self.units.items()}

    @abstractmethod
    def worth(self, gradient: Tensor, mask: Tensor) -> Tensor:
        """What one step adds to the score of each unit of a site, ``(U,)``.

        Args:
            gradient: dL/dm, ``(U,)``, fp32.
            mask: Mask at which it was taken, ``(U,)``, fp32, on the same device.
        """

    def collect(self, gradients: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
        """Add one optimizer step to the scores; see :meth:`Policy.collect`."""
        gradients, masks = self.checked(gradients, "gradients"), self.checked(masks, "masks")
        for name, gradient in gradients.items():
            worth = self.worth(gradient, masks[name].to(gradient.device))
            self._sums[name] = self._sums[name].to(gradient.device) + worth
        self.steps += 1

    def scores(self, norms: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The sums so far; see :meth:`Policy.scores`."""
        return {name: value.clone() for name, value in self._sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """The sums on the CPU, and the number of steps in them."""
        return {"steps": self.steps, "sums": {name: value.cpu().clone() for name, value in self._sums.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back the sums; see :meth:`Policy.load_state_dict`."""
        self._sums = {name: value.clone() for name, value in self.checked(state["sums"], "sums").items()}
        self.steps = int(state["steps"])
