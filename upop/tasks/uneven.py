"""Training in step: on several ranks, every rank has as many batches as the others, of the same sizes.

Ranks send each other features in tensors of one shape, wait for each other at every batch, and average their losses as
equals. The loaders of :mod:`upop.data` see to it: they leave out the samples that fill no whole batch of all ranks. Any
other loader is held against it before the first batch, where it would otherwise hang, or weigh samples unequally.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader


def check_even(loader: Any, everywhere: Callable[[Tensor], Tensor]) -> None:  # noqa: ANN401 (what Lightning iterates)
    """Refuse a training loader whose batches are not those of the other ranks in number and size.

    Args:
        loader: Of this rank. What is no ``DataLoader`` of a known length passes, for nobody can tell.
        everywhere: Gathers a tensor from all ranks, ``(ranks, ...)``.

    Raises:
        ValueError: If they are not; on every rank.
    """
    shares = everywhere(torch.tensor(_batches(loader))).tolist()
    for rank, share in enumerate(shares):
        if share != shares[0]:
            told = [f"{batches} of {size}, the last of {last}" for batches, size, last in (shares[0], share)]
            raise ValueError(
                f"ranks train in step, but their training batches differ: rank 0 has {told[0]}, rank {rank} has "
                f"{told[1]}; share the samples out evenly and leave out the tail (drop_last=True), as the data modules "
                "of upop do"
            )


def _batches(loader: Any) -> tuple[int, int, int]:  # noqa: ANN401
    """Number of batches, their size, and the size of the last one; zeros where that cannot be known."""
    if not isinstance(loader, DataLoader):
        return 0, 0, 0
    try:
        batches = len(loader)
    except TypeError:  # an iterable without a length
        return 0, 0, 0
    size = loader.batch_size
    if size is None:  # a batch sampler, or rows that are batches
        return batches, 0, 0
    return batches, size, size if loader.drop_last else len(loader.sampler) - (batches - 1) * size  # type: ignore[arg-type]
