"""Where the table of times for the budget currency ``latency`` comes from: the run, the cache, or the clock."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import transformers
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from upop import __version__
from upop.cost import LatencySettings, LatencyTable
from upop.runs.bench_conditions import device_name
from upop.runs.measuring import measure_latency
from upop.structure import Kind, Site, fingerprint

SAME_RUN = ("batch_size", "dtype", "model", "sites", "inputs")
"""What has to agree for a run to go on with its own table, on whatever machine."""


def latency_table(
    model: nn.Module,
    sites: Sequence[Site],
    inputs: Mapping[str, Tensor],
    settings: LatencySettings,
    device: torch.device,
    multiple_of: Mapping[Kind, int] | None = None,
    own: Path | None = None,
) -> LatencyTable:
    """The table of a model on a device: the run's own, or one that an earlier run left in the cache, or a new one.

    A new one goes into the cache (:func:`cache`). A run that goes on has to select by the numbers that it began with,
    so its own table holds, even where the machine or a library is another one now.

    Args:
        model: Dense model, on any device; its weights do not matter.
        sites: Sites of the kinds that are searched.
        inputs: One sample of any device, which gives the shapes.
        settings: What to measure.
        device: Where.
        multiple_of: Multiples that the kept units will have, by kind: sizes are measured at these.
        own: File that the run keeps its table in, if it has one yet.

    Raises:
        ValueError: If the run's own table cannot be read, or is one of another model or other settings.
    """
    wanted = setting(model, sites, inputs, settings, device, multiple_of or {})
    if own is not None and own.is_file():
        return _own(own, wanted, sites)
    kept = cache() / f"{_slug(wanted)}.json"
    table = _cached(kept, wanted)
    if table is None:
        rank_zero_info(f"latency: measuring {wanted['model']} on {wanted['device']}, about {settings.seconds:g} s")
        table = measure_latency(model, sites, inputs, settings, device, wanted)
        try:
            table.save(kept)
        except OSError as error:
            rank_zero_warn(f"the latency table cannot be kept at {str(kept)!r} ({error.strerror}); set UPOP_CACHE")
    else:
        rank_zero_info(f"latency: as measured before, in {kept}")
    return table


def cache() -> Path:
    """Directory of the tables: ``latency`` in ``$UPOP_CACHE`` or in ``~/.cache/upop``."""
    return Path(os.environ.get("UPOP_CACHE") or Path.home() / ".cache" / "upop") / "latency"


def place(settings: LatencySettings, training: torch.device) -> torch.device:
    """The device that the finished model is to run on.

    Args:
        settings: What to measure, and where.
        training: Device that the run trains on.

    Raises:
        ValueError: If there is no such device here.
    """
    if settings.device == "auto":
        return training
    if settings.device not in ("cpu", "cuda"):
        raise ValueError(
            f"search.latency.device is {settings.device!r}; give 'cpu', 'cuda', or 'auto' for the one that trains"
        )
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("search.latency.device is 'cuda', but torch finds no GPU here; give 'cpu', or run on one")
    return torch.device(settings.device)


def setting(
    model: nn.Module,
    sites: Sequence[Site],
    inputs: Mapping[str, Tensor],
    settings: LatencySettings,
    device: torch.device,
    multiple_of: Mapping[Kind, int],
) -> dict[str, Any]:
    """Everything that the times depend on, as plain values; the arguments are those of :func:`latency_table`."""
    config: Any = getattr(model, "config", None)
    code = f"{model!r} {getattr(config, '_attn_implementation', None)}"
    return {
        "type": device.type,
        "device": device_name(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "dtype": settings.dtype,
        "batch_size": settings.batch_size,
        "seconds": settings.seconds,
        "inputs": {name: list(value.shape[1:]) for name, value in inputs.items()},
        "multiple_of": dict(multiple_of),
        "model": type(model).__name__,
        "sites": fingerprint(sites),
        "code": hashlib.sha256(code.encode()).hexdigest()[:16],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "timm": _timm_version(),
        "upop": __version__,
    }


def _timm_version() -> str | None:
    """Version of timm, whose layers a model may be made of; ``None`` where it is not installed."""
    try:
        return version("timm")
    except PackageNotFoundError:
        return None


def _slug(wanted: Mapping[str, Any]) -> str:
    """Name of the file for a setting; a person can tell what it is about."""
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:12]
    return f"{wanted['model']}-{wanted['dtype']}-{wanted['batch_size']}-{digest}"


def _own(file: Path, wanted: Mapping[str, Any], sites: Sequence[Site]) -> LatencyTable:
    """The table that a run began with."""
    table = LatencyTable.load(file)
    for key in SAME_RUN:
        if table.setting.get(key) != wanted[key]:
            raise ValueError(
                f"{str(file)!r} was measured with {key} {table.setting.get(key)!r}, but this run has {wanted[key]!r}; "
                "delete the run directory to start again"
            )
    try:
        table.check(sites)
    except ValueError as error:
        raise ValueError(f"{str(file)!r} is damaged: {error}; delete the run directory to start again") from error
    return table


def _cached(file: Path, wanted: Mapping[str, Any]) -> LatencyTable | None:
    """The table of a setting from the cache, if there is one that can be used."""
    if not file.is_file():
        return None
    try:
        table = LatencyTable.load(file)
        if table.setting != wanted:
            raise ValueError(f"{str(file)!r} holds the times of another setting")
    except (ValueError, OSError) as error:
        rank_zero_warn(f"{error}; measuring again")
        return None
    return table
