"""The file that a phase goes on from: when it is written, that it is whole, and whether there is room for it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from upop.files import free_bytes, megabytes, write_atomic

MOMENTS = 2
"""Numbers that AdamW keeps of each weight that it trains."""


@dataclass(frozen=True)
class Checkpoints:
    """When a phase writes its checkpoint, one file that the same command goes on from.

    Attributes:
        every_minutes: Minutes between two checkpoints within an epoch; each epoch ends with one, and so does a run that
            is told to stop (SIGTERM, or SLURM's signal). A run that is killed loses at most so much.
    """

    every_minutes: float = 10.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.every_minutes) and self.every_minutes > 0):
            raise ValueError(f"checkpoints.every_minutes is {self.every_minutes!r}; give a number of minutes above 0")


class WholeCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, written beside the old one and renamed into its place.

    Lightning's own go to the system's temporary directory first and are copied from there, which takes room twice and
    leaves half a file where it is interrupted.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:  # noqa: ANN401
        """Write ``checkpoint``; what a run that was killed has left of its last attempt goes first.

        Args:
            checkpoint: Tensors and plain values.
            path: File to write.
            storage_options: None; the argument is Lightning's.

        Raises:
            DiskFullError: If there is no room; the file of before is whole.
            TypeError: If there are storage options.
        """
        if storage_options is not None:
            raise TypeError(f"storage_options is {storage_options!r}, but checkpoints are plain files; leave it out")
        path = Path(path)
        for left in path.parent.glob(f".{path.stem}-*.tmp{path.suffix}"):
            left.unlink(missing_ok=True)
        write_atomic(path, lambda temporary: _save(checkpoint, temporary))


def _save(checkpoint: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:  # of a file that Python writes, torch's errors say what the system said
        torch.save(checkpoint, file)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes that tensors take in a file."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def checkpoint_bytes(module: nn.Module) -> int:
    """Bytes of a checkpoint of ``module`` in training with AdamW, about."""
    trained = bytes_of(parameter for parameter in module.parameters() if parameter.requires_grad)
    return bytes_of(module.state_dict().values()) + MOMENTS * trained


@rank_zero_only
def check_room(phase: str, folder: Path, module: nn.Module) -> None:
    """Refuse to begin a phase whose files have no room.

    While a checkpoint is replaced there are two; the model is written at the end of the phase.

    Args:
        phase: Name of the phase.
        folder: Its directory, which need not exist.
        module: What it trains.

    Raises:
        ValueError: With what it needs and what is free.
    """
    there = 1 if (folder / "checkpoints" / "last.ckpt").is_file() else 2
    need = there * checkpoint_bytes(module) + bytes_of(module.parameters())
    free = free_bytes(folder)
    if free < need:
        raise ValueError(
            f"{phase} needs {megabytes(need)} in {str(folder)!r} for checkpoints and its model, but "
            f"{megabytes(free)} are free on that disk; free some, or give a run_dir on a larger disk"
        )
