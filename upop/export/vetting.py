"""Look at a model directory before anything is built of it, and say in one line what is wrong with it.

A directory may come from anywhere, so its config.json is not believed: what it describes has to be of a size that its
weights can be of, and none of its settings may name another file. That the weights fit is checked when they are loaded
(:mod:`upop.export.directory`), and code beside them is never run.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from upop.export.compression import CONFIG, KEY
from upop.families import build_dense
from upop.messages import some

WEIGHTS = "model.safetensors"
SHARDS = "model.safetensors.index.json"
MOST = {"layers": 1000, "depth": 1000, "labels": 2**20}
"""Numbers in a config that are counted through one by one, at most, by what their keys contain."""
MOST_SPARSE = 64
"""Size of the dense model over the size of the files of its weights, at most; half precision and the cut are in it."""
SPARE = 256 * 2**20
"""Bytes that a dense model may always take."""
SETTINGS = (
    "num_classes", "img_size", "in_chans", "global_pool", "class_token", "reg_tokens", "dynamic_img_size", "patch_size",
    "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "qk_norm", "init_values", "pos_embed", "pre_norm",
    "no_embed_class", "fc_norm", "drop_rate", "drop_path_rate", "act_layer", "norm_layer", "mlp_layer", "weight_init",
)  # fmt: skip
"""What a directory may ask of timm; other arguments of ``timm.create_model`` read files or ask a hub."""
WHOLE = ("I", "U", "BOOL")
"""Beginnings of safetensors' names for types that are no floating-point numbers."""
LONGEST = 300
"""Characters of a library's message that are passed on."""


@contextmanager
def blamed(place: str | Path) -> Iterator[None]:
    """Errors say which directory they are about, in one line; libraries fail in many ways on files that are broken.

    Raises:
        ValueError: For everything that goes wrong inside, but for errors of the system.
    """
    try:
        yield
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{str(place)!r} cannot be loaded: its weights are no tensors alone, or broken, and nothing in them was "
            "executed; save them as safetensors where they come from"
        ) from error
    except Exception as error:
        if isinstance(error, ValueError | TypeError) and str(place) in str(error):
            raise
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        what = " ".join(str(error).split())
        what = what if len(what) <= LONGEST else f"{what[:LONGEST]}..."
        raise ValueError(f"{str(place)!r} cannot be loaded: {kind}{what or 'no reason given'}") from error


def vet(path: Path) -> None:
    """Refuse a directory before it is loaded; names on a hub and directories without config.json pass.

    Raises:
        FileNotFoundError: If a file of its weights is missing.
        ValueError: If its config.json is no JSON object, names what is no model, describes a model much larger than the
            files of its weights, or asks timm for another file; or if the weights cannot be read or are whole numbers.
    """
    file = path / CONFIG
    if not file.is_file():
        return
    config = read_object(file)
    dense = {key: value for key, value in config.items() if key != KEY}  # sites are named there, not counted
    _check_counts(dense, str(file))
    if "architecture" in config:
        _check_timm(config, str(file))
    else:
        _check_class(config, str(file))
    files = weight_files(path)
    for one in files:
        if one.suffix == ".safetensors":
            _check_weights(one)
    if files:
        _check_size(path, sum(one.stat().st_size for one in files))


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: If there is none.
    """
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(file)!r} is not JSON: {error}; copy it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{str(file)!r} holds a {type(found).__name__}; expected a mapping")
    return found


def weight_files(path: Path) -> list[Path]:
    """The files of the weights: one, or the several that transformers makes of large ones; empty where there is none.

    Raises:
        FileNotFoundError: If one of several is missing.
        ValueError: If they are not listed as they should be, or one lies elsewhere.
    """
    whole = path / WEIGHTS
    index = path / SHARDS
    if whole.is_file() or not index.is_file():
        return [whole] if whole.is_file() else sorted(path.glob("pytorch_model*.bin"))
    listed = read_object(index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise ValueError(f"{str(index)!r} has no 'weight_map' from names of weights to files; copy it again")
    names = sorted(set(listed.values()))
    outside = [name for name in names if name in ("", ".", "..") or "\0" in name or Path(name).name != name]
    if outside:
        raise ValueError(f"{str(index)!r} names {some(outside)}; expected names of files beside it")
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{str(index)!r} names {len(names)} files of weights, of which {missing[0]!r} is missing; copy it again"
        )
    return [path / name for name in names]


def _check_counts(config: dict[str, Any], file: str) -> None:
    """Refuse to count through absurd numbers, on all levels of a config."""
    for key, value in config.items():
        most = min((limit for part, limit in MOST.items() if part in key), default=None)
        numbers = [number for number in (value if isinstance(value, list) else [value]) if isinstance(number, int)]
        absurd = [number for number in numbers if most is not None and number > most]
        if absurd:
            raise ValueError(f"{file!r} asks for {key} of {absurd[0]}; at most {most} are built")
        if isinstance(value, dict):
            _check_counts(value, file)


def _check_class(config: dict[str, Any], file: str) -> None:
    """Refuse what is in transformers but no model: its name would be called with the config."""
    import transformers

    named = config.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise ValueError(f"'architectures' in {file!r} is {named!r}; expected a list of names of classes")
    for name in named[:1]:
        found = getattr(transformers, name, transformers.PreTrainedModel)
        if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
            raise ValueError(f"'architectures' in {file!r} names {name!r}, which is no model")


def _check_timm(config: dict[str, Any], file: str) -> None:
    """Refuse what would make ``timm.create_model`` read another file or ask a hub."""
    import timm

    name, settings = config["architecture"], config.get("model_args") or {}
    if not isinstance(name, str) or name.partition(".")[0] not in timm.list_models():
        raise ValueError(f"{file!r} is of architecture {name!r}, which timm does not have")
    if not isinstance(settings, dict):
        raise ValueError(f"'model_args' in {file!r} is a {type(settings).__name__}; expected a mapping")
    others = sorted(settings.keys() - set(SETTINGS))
    if others:
        raise ValueError(f"'model_args' in {file!r} has {some(others)}; a directory may set {sorted(SETTINGS)}")
    if not isinstance(config.get("pretrained_cfg") or {}, dict):
        raise ValueError(f"'pretrained_cfg' in {file!r} is no mapping")


def _check_weights(file: Path) -> None:
    """Refuse what is no safetensors file, and weights that are not floating-point numbers; reads the header alone."""
    try:
        with safe_open(file, framework="pt") as tensors:
            kinds = {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise ValueError(f"{str(file)!r} cannot be read as safetensors: {error}; copy it again") from error
    whole = [name for name, kind in kinds.items() if name.endswith((".weight", ".bias")) and kind.startswith(WHOLE)]
    if whole:
        raise ValueError(
            f"{str(file)!r} holds {whole[0]} in {kinds[whole[0]]}; expected floating-point numbers, not quantised ones"
        )


def _check_size(path: Path, size: int) -> None:
    """Refuse a dense model that is much larger than its weights, before memory is asked for it."""
    with torch.device("meta"):
        dense = build_dense(str(path))
    needed = 4 * sum(value.numel() for value in dense.parameters())
    if needed > MOST_SPARSE * size + SPARE:
        raise ValueError(
            f"{str(path / CONFIG)!r} describes a model of {needed / 2**20:,.0f} MiB, its weights are "
            f"{size / 2**20:,.1f} MiB; does it belong to them?"
        )
