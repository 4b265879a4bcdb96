"""Latency as a currency: a table of measured times, from which the time of any plan follows.

Only time itself tells what a cut saves on a device: it depends on kernels, caches and the size of the batch, and not
every FLOP takes equally long. So each part of a layer (an attention, an MLP) is timed at some of its sizes, and the
sizes between follow by linear interpolation. Nothing here measures; a table is numbers only, and a file.

A search bisects on the cost, so time must not fall when more units stay. Measured times may: by noise, or because
kernels are made for multiples of 8 and an odd size is slower than a larger even one. A size then counts as the fastest
of those that are at least as large (what padding it would take), which leaves the time of the whole part as it was
measured; a running maximum from below would make the dense model slower than it is, and every cut look better.

Shapes: ``G`` sizes measured, ``U`` units of a site; a part whose heads and head-dims are both searched has two axes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from upop.files import write_json
from upop.messages import closest, some
from upop.structure import Site

TABLE_FORMAT = 1
Dtype = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class LatencySettings:
    """What the compressed model is to be fast at; for the budget currency ``latency``.

    Attributes:
        batch_size: Samples per forward pass.
        dtype: Numbers that the finished model computes with.
        device: Where it will run, which ``multiple_of: auto`` goes by too: ``cpu``, ``cuda``, or ``auto``, which is
            where the run trains.
        seconds: Time to spend on measuring, about; the table is kept in ``~/.cache/upop`` (or ``$UPOP_CACHE``).
    """

    batch_size: int = 32
    dtype: Dtype = "fp32"
    device: str = "auto"
    seconds: float = 60.0

    def __post_init__(self) -> None:
        if type(self.batch_size) is not int or self.batch_size < 1:
            raise ValueError(f"search.latency.batch_size is {self.batch_size!r}; give 1 sample or more")
        if self.dtype not in get_args(Dtype):
            known = sorted(get_args(Dtype))
            raise ValueError(
                f"search.latency.dtype is {self.dtype!r}; choose one of {known}{closest(str(self.dtype), known)}"
            )
        if not self.seconds >= 0:
            raise ValueError(f"search.latency.seconds is {self.seconds!r}; give the time to measure for, 0 or more")


@dataclass(frozen=True, eq=False)
class Curve:
    """Measured times of a part of a layer; parts of equal shape share one.

    Attributes:
        sizes: Units kept, by axis (the sites of the part): from 1 to all of them, ascending.
        times: Nanoseconds, ``(G,)`` or ``(G, G)``: of the part in a forward pass of the batch, with whatever surrounds
            it in the module that was timed. Only differences count.

    Raises:
        ValueError: If sizes are not ascending from 1, or the times are not one for each of them.
    """

    sizes: tuple[tuple[int, ...], ...]
    times: NDArray[np.float64]

    def __post_init__(self) -> None:
        for sizes in self.sizes:
            whole = all(type(size) is int for size in sizes)
            if not whole or sizes[:1] != (1,) or any(low >= high for low, high in pairwise(sizes)):
                raise ValueError(f"sizes {list(sizes)} are not ascending from 1")
        if self.times.shape != tuple(map(len, self.sizes)) or not np.isfinite(self.times).all():
            raise ValueError(f"times of shape {self.times.shape} are not one finite number for each of {self.sizes}")

    @property
    def units(self) -> tuple[int, ...]:
        """Units of the dense sites, by axis."""
        return tuple(sizes[-1] for sizes in self.sizes)

    def above_least(self) -> NDArray[np.float64]:
        """Time of every number of units kept beyond that of one unit, ``(U + 1,)`` or ``(U + 1, U + 1)``, monotone.

        Less than one unit cannot be timed and takes as long as one.
        """
        times = self.times
        for axis in range(times.ndim):
            times = np.flip(np.minimum.accumulate(np.flip(times, axis), axis), axis)
        for axis, sizes in enumerate(self.sizes):
            every = np.arange(sizes[-1] + 1)
            rows = [np.interp(every, sizes, row) for row in np.moveaxis(times, axis, -1).reshape(-1, len(sizes))]
            left = [length for place, length in enumerate(times.shape) if place != axis]
            times = np.moveaxis(np.array(rows).reshape(*left, len(every)), -1, axis)
        found: NDArray[np.float64] = times - times.flat[0]
        return found


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """Times of a model, whole and in parts, on one device.

    Attributes:
        setting: What was timed how and where: ``device``, ``threads``, ``dtype``, ``batch_size``, versions, ...
        whole: Nanoseconds of a forward pass of the batch through the dense model.
        scale: What the parts' own times are multiplied by, so that together they save what the model was seen to save.
        curves: Measured times.
        parts: Number of the curve, by block.
        axes: Names of the sites of each block, in the order of the curve's axes.
    """

    setting: Mapping[str, Any]
    whole: int
    scale: float
    curves: tuple[Curve, ...]
    parts: Mapping[str, int]
    axes: Mapping[str, tuple[str, ...]]

    @cached_property
    def _times(self) -> tuple[NDArray[np.int64], ...]:
        """Nanoseconds of every number of units kept, by curve; rounded down, so that parts never exceed a whole."""
        return tuple(np.floor(self.scale * curve.above_least()).astype(np.int64) for curve in self.curves)

    def time(self, block: str, kept: Mapping[str, int]) -> int:
        """Nanoseconds that a block takes beyond what it takes with one unit at each site.

        Args:
            block: Module path of the block.
            kept: Units kept by site name; a site that is not named stays whole.
        """
        times = self._times[self.parts[block]]
        units = self.curves[self.parts[block]].units
        names = self.axes[block]
        return int(times[tuple(kept.get(name, whole) for name, whole in zip(names, units, strict=True))])

    def check(self, sites: Sequence[Site]) -> None:
        """Refuse a table of another model.

        Raises:
            ValueError: If it does not hold a site, or holds it with another number of units.
        """
        units: dict[str, int] = {}
        for block, names in self.axes.items():
            units.update(zip(names, self.curves[self.parts[block]].units, strict=True))
        for site in sites:
            if units.get(site.name) != site.units:
                raise ValueError(
                    f"the latency table has {units.get(site.name)!r} units at site {site.name!r}, this model has "
                    f"{site.units}; it knows the sites {some(sorted(units))}: measure it for this model and these units"
                )
            if site.name not in self.axes.get(site.block, ()):
                raise ValueError(
                    f"the latency table has no times of site {site.name!r} in block {site.block!r}; it knows "
                    f"{some(sorted(self.axes))}: measure it for this model and these units"
                )

    def save(self, path: str | Path) -> None:
        """Write the table as JSON, atomically."""
        write_json(path, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The table as what its JSON file holds."""
        curves = [{"sizes": [list(sizes) for sizes in one.sizes], "times": one.times.tolist()} for one in self.curves]
        blocks = {block: {"curve": curve, "sites": list(self.axes[block])} for block, curve in self.parts.items()}
        return {
            "format": TABLE_FORMAT,
            "setting": dict(self.setting),
            "whole": self.whole,
            "scale": self.scale,
            "curves": curves,
            "blocks": blocks,
        }

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read a table from its JSON file.

        Raises:
            ValueError: If it is not a table, or of another format version.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_bytes()))
        except (ValueError, RecursionError, OverflowError) as error:
            raise ValueError(f"{str(path)!r} is not a latency table that this version reads: {error}") from error

    @classmethod
    def from_dict(cls, data: Any) -> LatencyTable:  # noqa: ANN401 (anything that JSON can hold)
        """The table that :meth:`to_dict` wrote.

        Raises:
            ValueError: If it is of another format version, lacks a part, or its parts do not fit together.
        """
        if not isinstance(data, dict) or data.get("format") != TABLE_FORMAT:
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"format {found!r}; this version reads format {TABLE_FORMAT}")
        try:
            curves = tuple(
                Curve(tuple(map(tuple, one["sizes"])), np.array(one["times"], float)) for one in data["curves"]
            )
            blocks = {
                str(block): (facts["curve"], tuple(map(str, facts["sites"]))) for block, facts in data["blocks"].items()
            }
            setting, whole, scale = dict(data["setting"]), data["whole"], data["scale"]
        except KeyError as error:
            raise ValueError(f"it lacks {error.args[0]!r}") from error
        except (TypeError, AttributeError) as error:
            raise ValueError(f"it holds something in another form ({error})") from error
        if type(whole) is not int or whole < 1 or not isinstance(scale, int | float) or not 0 <= scale < math.inf:
            raise ValueError(f"its whole is {whole!r} and its scale {scale!r}; they are nanoseconds and a factor")
        for block, (curve, names) in blocks.items():
            if type(curve) is not int or not 0 <= curve < len(curves) or len(names) != len(curves[curve].sizes):
                raise ValueError(
                    f"block {block!r} has {len(names)} sites and curve {curve!r}, which do not fit together"
                )
        parts = {block: curve for block, (curve, _) in blocks.items()}
        return cls(setting, whole, float(scale), curves, parts, {block: names for block, (_, names) in blocks.items()})
