"""What upop reaches for inside of DeepSpeed's engine: weights as it holds them, and what it leaves behind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from upop.shards import gathered, partitioned


def gather_(parameters: list[Any]) -> None:
    """Make parameters whole that ZeRO stage 3 has shared out."""
    if parameters:
        parameters[0].all_gather(param_list=parameters)


def _shape(tensor: Any) -> torch.Size:  # noqa: ANN401 (with DeepSpeed's attributes)
    """Shape of a weight or buffer when it is whole."""
    return torch.Size(tensor.ds_shape) if partitioned(tensor) else tensor.shape


def write_(target: Any, value: Tensor) -> None:  # noqa: ANN401 (with DeepSpeed's attributes)
    """Write a weight or buffer, and what the optimizer holds of it."""
    value = value.to(target.device).view(_shape(target))
    if partitioned(target):
        target.ds_tensor.copy_(_share(target, value))
    if not partitioned(target) or gathered(target):
        target.data.copy_(value)
    if target.requires_grad:
        write_trained_(target, value)


def write_trained_(parameter: Any, value: Tensor, moment: str | None = None) -> None:  # noqa: ANN401
    """Write this rank's share of what the optimizer trains, or of a moment of it."""
    from deepspeed import utils

    value = value.to(parameter.device)
    share = _share(parameter, value) if partitioned(parameter) else value
    where = "local" if partitioned(parameter) else "full"
    if moment is None:
        getattr(utils, f"safe_set_{where}_fp32_param")(parameter, share)
    else:
        getattr(utils, f"safe_set_{where}_optimizer_state")(parameter, share, moment)


def _share(parameter: Any, value: Tensor) -> Tensor:  # noqa: ANN401 (with DeepSpeed's attributes)
    """This rank's share of ``value``, flat; that of the last ranks is padded with zeros."""
    rank, size = torch.distributed.get_rank(), parameter.ds_tensor.numel()
    piece = value.flatten()[rank * size : (rank + 1) * size]
    return nn.functional.pad(piece, (0, size - piece.numel()))


def forwards() -> list[Any]:
    """The modules whose forward passes DeepSpeed believes to be inside of, the outermost first."""
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK

    found: list[Any] = FWD_MODULE_STACK
    return found


def let_go() -> None:
    """Undo what stage 3 leaves in the process: modules in its caches, and another linear layer in torch."""
    from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses as Patches
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator as Coordinator

    forwards().clear()
    cached = vars(Coordinator)["_PartitionedParameterCoordinator__params_to_release"]
    for cell in cached.__closure__ or ():
        if hasattr(cell.cell_contents, "cache_clear"):
            cell.cell_contents.cache_clear()
    torch.nn.functional.linear = getattr(Patches, "linear_bk", torch.nn.functional.linear)
