"""Units, sites, cuts and plans: the vocabulary that every part of upop shares.

A *unit* is the smallest thing that can be removed: an attention head, one head-dim position (the same index in every
head of a layer), one MLP neuron. A *site* is a place with interchangeable units and one mask vector. A *cut* says which
rows or columns of one linear layer belong to the units of a site. A *plan* lists the unit numbers to keep, per site.
Nothing here knows a model class: sites name layers by their module path, so that the search, the cost and the surgery
need no model.

Shapes: ``U`` units of a site, ``R`` positions (rows or columns) that one unit owns on one side of one layer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from upop.files import write_json
from upop.messages import some

Kind = Literal["head", "head_dim", "neuron"]
Modality = Literal["vision", "text", "fusion"]
Side = Literal["out", "in"]
Currency = Literal["params", "flops", "latency"]

KINDS: tuple[Kind, ...] = get_args(Kind)
MODALITIES: tuple[Modality, ...] = get_args(Modality)
CURRENCIES: tuple[Currency, ...] = ("params", "flops")
"""What is counted, for every model; ``latency`` has to be measured."""

PLAN_FORMAT = 1


@dataclass(frozen=True)
class Layer:
    """A linear layer as the cost and the surgery see it.

    Attributes:
        name: Module path in the model.
        in_features: Columns of the dense weight.
        out_features: Rows of the dense weight.
        bias: Whether it adds a bias.
        tokens: Name of the stream whose tokens pass through it (``vision``, ``text``, ...), for FLOPs.
    """

    name: str
    in_features: int
    out_features: int
    bias: bool
    tokens: str


@dataclass(frozen=True)
class Cut:
    """The rows (``out``) or columns (``in``) of one layer that belong to the units of a site.

    The side's features are seen as an array of shape ``view``; the units lie along its dimension ``dim``. Heads of a
    fused qkv layer with 12 heads of 64 are ``view=(3, 12, 64), dim=1``, its head-dim positions ``dim=2``, neurons
    ``view=(U,)``.

    >>> layer = Layer("q", in_features=6, out_features=6, bias=True, tokens="text")
    >>> Cut(layer, "out", view=(2, 3), dim=1).positions().tolist()
    [[0, 3], [1, 4], [2, 5]]
    """

    layer: Layer
    side: Side
    view: tuple[int, ...]
    dim: int

    @property
    def units(self) -> int:
        """Number of units, ``U``."""
        return self.view[self.dim]

    def positions(self) -> Tensor:
        """Rows or columns that each unit owns, ``(U, R)``, ascending within a unit."""
        features = torch.arange(self.layer.out_features if self.side == "out" else self.layer.in_features)
        return features.view(self.view).movedim(self.dim, 0).reshape(self.units, -1)


@dataclass(frozen=True)
class Size:
    """A number that a module keeps about its own width and that the surgery has to keep true.

    Attributes:
        module: Module path.
        attribute: Attribute of that module, e.g. ``num_heads``.
        layer: If given, the attribute becomes this layer's ``out_features / parts``; otherwise the units kept at the
            site.
        parts: Number of equal parts that ``layer`` fuses (3 for a fused qkv).
    """

    module: str
    attribute: str
    layer: str | None = None
    parts: int = 1


@dataclass(frozen=True)
class Fold:
    """Query rows to rescale by ``sqrt(kept / units)`` where a module derives its scale from the current head size.

    Attributes:
        layer: Layer that holds the queries.
        parts: Number of equal parts that it fuses, queries first.
        module: Module path of the attention, whose ``scale``, where it stores one, becomes ``kept ** -0.5``.
    """

    layer: str
    parts: int
    module: str


@dataclass(frozen=True)
class Attention:
    """The two matrix products of an attention, shared by the head and head-dim sites of one block (for FLOPs)."""

    name: str
    heads: int
    head_dim: int
    queries: str
    keys: str


@dataclass(frozen=True)
class Site:
    """One place with interchangeable units and one mask vector.

    Attributes:
        name: Unique in the model: the block's module path, a dot, and the kind.
        kind: What a unit is.
        modality: Which tower it belongs to.
        depth: Number of the layer within its tower, from 0.
        cuts: Rows and columns that go with the units.
        sizes: Numbers that the surgery keeps true.
        fold: Query rows to rescale, where the module derives its scale from the head size.
        attention: The attention that the units belong to, if they do.
    """

    name: str
    kind: Kind
    modality: Modality
    depth: int
    cuts: tuple[Cut, ...]
    sizes: tuple[Size, ...] = ()
    fold: Fold | None = None
    attention: Attention | None = None

    @property
    def units(self) -> int:
        """Number of units, ``U``."""
        return self.cuts[0].units

    @property
    def block(self) -> str:
        """Module path of the block: sites with the same block cut the same layers."""
        return self.name.rpartition(".")[0]


def fingerprint(sites: Iterable[Site]) -> str:
    """Sixteen hex digits of the architecture (names and sizes of what can be cut); the weights do not count."""
    facts = [{key: value for key, value in asdict(site).items() if key != "depth"} for site in sites]
    text = json.dumps(sorted(facts, key=lambda fact: str(fact["name"])), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Plan:
    """Unit numbers to keep, per site: the one hand-over between search and surgery.

    Attributes:
        keep: Ascending unit numbers by site name. A site that is not named stays whole.
        units: Number of units of each dense site, by name.
        model: Fingerprint of the model that it was made for.
        facts: What a reader wants to know (budget, policy, measured cost); not read back by any part.
    """

    keep: Mapping[str, tuple[int, ...]]
    units: Mapping[str, int]
    model: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def whole(cls, sites: Sequence[Site]) -> Plan:
        """The plan that keeps every unit."""
        return cls.of({site.name: range(site.units) for site in sites}, sites)

    @classmethod
    def of(
        cls, keep: Mapping[str, Iterable[int]], sites: Sequence[Site], facts: Mapping[str, Any] | None = None
    ) -> Plan:
        """A plan for the model that ``sites`` describe, checked against them.

        Raises:
            ValueError: As :meth:`check`.
        """
        chosen = {name: tuple(int(unit) for unit in units) for name, units in keep.items()}
        units = {site.name: site.units for site in sites if site.name in chosen}
        plan = cls(chosen, units, fingerprint(sites), dict(facts or {}))
        plan.check(sites)
        return plan

    def kept(self) -> dict[str, int]:
        """Number of units kept, per site named."""
        return {name: len(units) for name, units in self.keep.items()}

    def kinds(self) -> list[Kind]:
        """Unit kinds that the plan is about, from the names of its sites."""
        found = {name.rpartition(".")[2] for name in self.keep}
        return [kind for kind in KINDS if kind in found]

    def check(self, sites: Sequence[Site]) -> None:
        """Refuse a plan that does not fit the model that ``sites`` describe.

        Raises:
            ValueError: If it names an unknown site, keeps no unit, repeats one or counts past the last one, or if it
                was made for a model of another architecture.
        """
        known = {site.name: site for site in sites}
        for name, units in self.keep.items():
            if name not in known:
                raise ValueError(
                    f"plan names site {name!r}, but this model has {some(list(known))}; was it made for this model?"
                )
            total = known[name].units
            if self.units.get(name, total) != total:
                raise ValueError(f"plan was made for {self.units[name]} units at site {name!r}, which has {total}")
            if not units:
                raise ValueError(f"plan keeps 0 of {total} units at site {name!r}; keep at least 1")
            if list(units) != sorted(set(units)):
                raise ValueError(f"plan repeats or misorders units at site {name!r}; list each unit once, ascending")
            if units[0] < 0 or units[-1] >= total:
                wrong = units[0] if units[0] < 0 else units[-1]
                raise ValueError(f"plan keeps unit {wrong} at site {name!r}, which has units 0 to {total - 1}")
        if self.model != fingerprint(sites):
            raise ValueError(
                f"plan was made for another model: its fingerprint is {self.model!r}, this model's is "
                f"{fingerprint(sites)!r}; use the plan with the model (and unit kinds) it was searched on"
            )

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, one site a line, atomically."""
        write_json(path, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The plan as what its JSON file holds."""
        return {
            "format": PLAN_FORMAT,
            "model": self.model,
            "facts": dict(self.facts),
            "units": dict(self.units),
            "keep": {name: list(units) for name, units in self.keep.items()},
        }

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan from its JSON file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not a plan, or of another format version.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no plan at {str(path)!r}; `upop search` writes one")
        try:
            return cls.from_dict(json.loads(path.read_bytes()))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{str(path)!r} is not a plan that this version reads: {error}") from error

    @classmethod
    def from_dict(cls, data: Any) -> Plan:  # noqa: ANN401 (anything that JSON can hold)
        """The plan that :meth:`to_dict` wrote.

        Raises:
            ValueError: If it is of another format version, lacks a part, or its units are not lists of whole numbers.
        """
        if not isinstance(data, dict) or data.get("format") != PLAN_FORMAT:
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"plan format {found!r}; this version reads format {PLAN_FORMAT}")
        missing = [key for key in ("model", "facts", "units", "keep") if key not in data]
        if missing:
            raise ValueError(f"plan lacks {missing}; was it written by `upop search`?")
        if not all(isinstance(data[key], dict) for key in ("facts", "units", "keep")):
            raise ValueError("'facts', 'units' and 'keep' of a plan are mappings")
        for name, units in data["keep"].items():
            if not isinstance(units, list) or any(type(unit) is not int for unit in units):
                raise ValueError(f"units kept at site {name!r} are not a list of whole numbers")
            if type(data["units"].get(name)) is not int:
                raise ValueError(f"'units' of a plan has no whole number for site {name!r}")
        keep = {name: tuple(units) for name, units in data["keep"].items()}
        return cls(keep, dict(data["units"]), str(data["model"]), dict(data["facts"]))
