"""How models are timed: on which device, in which dtype, and what to say when they do not go together."""

from __future__ import annotations

import math
import platform
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from upop.messages import closest
from upop.runs.timing import DTYPES


@dataclass(frozen=True)
class Conditions:
    """How models are timed.

    Attributes:
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: Of weights and images: ``fp32``, ``bf16`` or ``fp16``.
        batch_sizes: Samples per forward pass; each is timed.
        compiled: Time what torch.compile makes of the models, for each batch size anew.
        seconds: Time to spend on the timing of each batch size, about, over all models; warming up comes on top.
    """

    device: str = "auto"
    dtype: str = "fp32"
    batch_sizes: Sequence[int] = (1, 32)
    compiled: bool = False
    seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype {self.dtype!r}; known: {list(DTYPES)}{closest(self.dtype, DTYPES)}")
        wrong = [size for size in self.batch_sizes if isinstance(size, bool) or not isinstance(size, int) or size < 1]
        if wrong or not self.batch_sizes:
            given = wrong[0] if wrong else list(self.batch_sizes)
            raise ValueError(f"batch size is {given!r}; give one whole number from 1 up, or several")
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise ValueError(f"seconds is {self.seconds!r}; give more than 0")

    def place(self) -> torch.device:
        """The device.

        Raises:
            ValueError: If it is unknown, or not in this machine.
        """
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if self.device == "auto":
            return torch.device("cuda" if gpus else "cpu")
        found = re.fullmatch(r"cpu|cuda(?::(\d+))?", self.device)
        if not found:
            raise ValueError(f"unknown device {self.device!r}; known: ['auto', 'cpu', 'cuda', 'cuda:N']")
        if self.device != "cpu" and int(found[1] or 0) >= gpus:
            raise ValueError(f"device is {self.device!r}, but torch finds {gpus} GPUs here; take 'cpu' or 'auto'")
        return torch.device(self.device)


def device_name(device: torch.device) -> str:
    """What a device is called: the model of the GPU or the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor() if device.type == "cpu" else device.type


def processor() -> str:
    """Name of the CPU, as the system knows it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(named), "") or platform.processor() or platform.machine()


@contextmanager
def explained(name: str, conditions: Conditions, what: str) -> Iterator[None]:
    """Turn what torch says of memory, dtypes and compilers into one line for the user."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        line, place = " ".join(str(error).strip().splitlines()[:2]), conditions.place()
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in line:
            raise ValueError(
                f"no memory for {what} of {name} on {place}: {line}; take a smaller batch or fewer models"
            ) from error
        if "not implemented for" in line:
            raise ValueError(
                f"{name} cannot compute in {conditions.dtype} on {place}: {line}; take another dtype"
            ) from error
        if conditions.compiled and isinstance(error, torch._dynamo.exc.TorchDynamoException):
            raise ValueError(f"torch.compile fails on {name}: {line}; time it without") from error
        raise
