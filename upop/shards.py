"""Tensors that are shared out over the ranks of a run, by FSDP2 or by ZeRO stage 3, met one at a time.

FSDP2's are :class:`DTensor`; ZeRO's are ordinary parameters that DeepSpeed gives attributes of its own (``ds_...``),
whose data come and go. Nothing of DeepSpeed is imported for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor


def partitioned(tensor: object) -> bool:
    """Whether a tensor is a parameter that ZeRO stage 3 has shared out."""
    return hasattr(tensor, "ds_id")


def gathered(parameter: Any) -> bool:  # noqa: ANN401 (with DeepSpeed's attributes)
    """Whether a parameter that ZeRO stage 3 has shared out is whole at the moment, as small ones are after a step."""
    return bool(parameter.ds_status.name == "AVAILABLE")


def engaged(tensor: object) -> bool:
    """Whether a tensor is a parameter that DeepSpeed has tied to an engine, with any stage of ZeRO."""
    return partitioned(tensor) or hasattr(tensor, "_hp_mapping")


@contextmanager
def summoned(tensor: Any) -> Iterator[Tensor]:  # noqa: ANN401 (a tensor, maybe with DeepSpeed's attributes)
    """A with-block in which a tensor is whole, on its device and without gradients; every rank has to enter it."""
    if isinstance(tensor, DTensor):
        yield tensor.full_tensor().detach()
    elif partitioned(tensor) and not gathered(tensor):
        tensor.all_gather(param_list=[tensor])
        try:
            yield tensor.detach()
        finally:
            tensor.partition(param_list=[tensor])
    else:
        yield tensor.detach()


def whole(tensor: Tensor) -> Tensor:
    """A copy of a tensor with the shares of all ranks, on the CPU; every rank has to ask for it."""
    with summoned(tensor) as found:
        return found.cpu().clone()


def moving(target: Any, source: Any) -> list[tuple[Tensor, Tensor]]:  # noqa: ANN401 (as of held)
    """What this rank has to move of ``target``, beside what it holds of ``source``, which is shared out alike.

    A target that ZeRO has made whole while its source is not is shared out again: its next use gathers what was moved.
    """
    to, of = held(target), held(source)
    if len(to) > len(of):
        target.partition(param_list=[target])
    return list(zip(to, of, strict=False))


def held(tensor: Any) -> list[Tensor]:  # noqa: ANN401 (a tensor, maybe with DeepSpeed's attributes)
    """What this rank holds of a tensor, without gradients and in the same memory.

    One piece; of a parameter that ZeRO has shared out and that is whole at the moment, both.
    """
    if isinstance(tensor, DTensor):
        return [tensor.to_local().detach()]
    if partitioned(tensor):
        share = tensor.ds_tensor.detach()
        return [share, tensor.detach()] if gathered(tensor) else [share]
    return [tensor.detach()]
