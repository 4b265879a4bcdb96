"""Results of single items, brought together from every process that made some of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def gather_by_index(found: Mapping[int, T]) -> dict[int, T]:
    """The results of all processes, by item number, in its order; those of this one where there is only one.

    Every process has to call this, also one without results, and every process gets everything.

    Args:
        found: Results of this process, by the number of their item in the data set. Plain values that can be pickled
            and compared: strings, numbers, tuples of these.

    Raises:
        ValueError: If two processes have different results for one item; on every process.

    >>> gather_by_index({3: "a cat", 0: "a dog"})
    {0: 'a dog', 3: 'a cat'}
    """
    parts: list[Mapping[int, T]] = [found]
    if dist.is_available() and dist.is_initialized():
        everything: list[dict[int, T]] = [{}] * dist.get_world_size()
        dist.all_gather_object(everything, dict(found))
        parts = list(everything)
    merged: dict[int, T] = {}
    for part in parts:
        for index, result in part.items():
            if merged.setdefault(index, result) != result:
                raise ValueError(
                    f"item {index} came out as {merged[index]!r} in one process and as {result!r} in another; "
                    f"give each item to one process only"
                )
    return dict(sorted(merged.items()))
