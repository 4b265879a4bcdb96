"""Read the tensors of a file that somebody else wrote; nothing in it is executed."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

KEYS = ("model", "state_dict")
"""Under what a file keeps the tensors, where it holds more."""


def read(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.pth``, ``.pt`` or ``.safetensors`` file by name, mapped from the disk where that can be.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty, cannot be read, is a TorchScript archive, or holds anything else than a state dict.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(file)!r}; give a checkpoint, such as model_base_nlvr.pth")
    if path.stat().st_size == 0:
        raise ValueError(f"{str(file)!r} is empty; copy it again")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{str(file)!r} cannot be read as safetensors: {error}; copy it again") from error
    if _is_torchscript(path):
        raise ValueError(
            f"{str(file)!r} is a TorchScript archive, which holds code, and none of it was executed; where you trust "
            "the file, run torch.save(torch.jit.load(FILE, map_location='cpu').state_dict(), 'weights.pt') and give "
            "weights.pt"
        )
    return _tensors(str(file), _content(path))


def _is_torchscript(path: Path) -> bool:
    """Whether a file is what ``torch.jit.save`` writes, as OpenAI's own files are: an archive with code in it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _content(path: Path) -> Any:  # noqa: ANN401 (whatever was saved)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on other ways to read it is for those who wrote it
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # bytes that nobody vouches for fail in many ways
        raise ValueError(_why(str(path), error)) from error


def _why(file: str, error: Exception) -> str:
    """One line on a file that cannot be read."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and found:
        return (
            f"{file!r} holds more than tensors: a {found[1]}, which was not executed; save the state dict alone "
            "(torch.save(model.state_dict(), ...)) where the file comes from"
        )
    return (
        f"{file!r} is no state dict that can be read without executing what is in it, and nothing was executed; give "
        "what torch.save(model.state_dict(), ...) wrote, and copy it again if it is that"
    )


def _tensors(file: str, content: Any) -> dict[str, Tensor]:  # noqa: ANN401 (whatever was saved)
    for key in KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        what = "an empty mapping" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise ValueError(f"{file!r} holds {what}; expected tensors by name, alone or under 'model' or 'state_dict'")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{file!r} holds a {type(value).__name__} under {name!r}; expected tensors by name, alone or under "
                "'model' or 'state_dict'"
            )
    return dict(content)
