"""Find out from the shapes of weights how much of each layer was kept, and refuse shapes that no cut explains.

UPop's authors keep the same head-dim positions in every head of a layer, and the number of heads. So a layer of ``R``
rows for heads of ``P`` has ``R / heads`` of the ``P`` positions left. Which ones these were is not in the weights, and
does not matter to them: the first ones stand for them.

Source: ``compress`` and ``prune_if_compressed`` of the models in https://github.com/sdc17/UPop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor, nn

from upop.messages import some
from upop.structure import Cut, Kind, Plan, Site

UNITS: dict[Kind, str] = {"head_dim": "head-dim positions", "neuron": "neurons"}
"""What can have been removed."""
FIRST = "which units were kept is not in the file; the first ones of each layer stand for them in the plan"
Names = Callable[[str], str]
"""The name that a weight has in the file, for the one that it has in the model."""


def check(
    what: str,
    model: nn.Module,
    sites: Sequence[Site],
    weights: Mapping[str, Tensor],
    named: Names,
    free: Iterable[str] = (),
) -> None:
    """Refuse weights that do not fill ``model`` or that it has no place for; sizes that a cut changes may be smaller.

    Args:
        what: How the message begins.
        model: The dense model.
        sites: What can be cut in it.
        weights: Weights by their names in ``model``.
        named: Their names in the file.
        free: Names of those that may be of any shape.

    Raises:
        ValueError: With the names, as they are in the file, of the first that differ.
    """
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    smaller = {(name, dim) for site in sites for name, dim, _ in _sides(site, weights)}
    wrong = [
        f"{named(name)} is {tuple(tensor.shape)} in the file, {own[name]} in the model"
        for name, tensor in weights.items()
        if name in own and name not in free and not _fits(name, tuple(tensor.shape), own[name], smaller)
    ]
    if wrong:
        more = f" and {len(wrong) - 2} more differ" if len(wrong) > 2 else ""
        raise ValueError(f"{what}: {'; '.join(wrong[:2])}{more}; give a --like of the same size")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    filled = {id(parameters[name]) for name in weights if name in parameters}
    missing = [named(name) for name in own if name not in weights and id(parameters.get(name)) not in filled]
    unexpected = [named(name) for name in weights if name not in own]
    if missing or unexpected:
        lacks = [f"the file lacks {some(missing)}"] if missing else []
        has = [f"the model has no place for {some(unexpected)}"] if unexpected else []
        raise ValueError(f"{what}: {' and '.join(lacks + has)}; give a --like of the same size, and a whole file")


def _fits(name: str, found: tuple[int, ...], own: tuple[int, ...], smaller: set[tuple[str, int]]) -> bool:
    """Whether a shape is the model's own, or smaller where a cut makes it so."""
    return len(found) == len(own) and all(
        size == whole or (0 < size < whole and (name, dim) in smaller)
        for dim, (size, whole) in enumerate(zip(found, own, strict=True))
    )


def _sides(site: Site, weights: Mapping[str, Tensor]) -> list[tuple[str, int, Cut]]:
    """Name, dimension and cut of every weight among ``weights`` that gets smaller with the units of a site."""
    found = []
    for cut in site.cuts:
        found.append((f"{cut.layer.name}.weight", 0 if cut.side == "out" else 1, cut))
        if cut.side == "out" and cut.layer.bias:
            found.append((f"{cut.layer.name}.bias", 0, cut))
    return [(name, dim, cut) for name, dim, cut in found if name in weights]


def kept_units(what: str, sites: Sequence[Site], weights: Mapping[str, Tensor], named: Names) -> dict[str, int]:
    """Number of units that are left at each site.

    Args:
        what: How the message begins.
        sites: What can be cut in the dense model.
        weights: Weights that :func:`check` has let through.
        named: Their names in the file.

    Raises:
        ValueError: If the shapes of a site are not those of one cut: rows that heads cannot share, or layers of one
            attention or MLP that keep unlike numbers.
    """
    kept = {}
    for site in sites:
        found: dict[str, int] = {}
        for name, dim, cut in _sides(site, weights):
            size, each = weights[name].shape[dim], math.prod(cut.view) // cut.units
            if size % each:
                raise ValueError(
                    f"{what}: {named(name)} is {tuple(weights[name].shape)}, and {size} is no multiple of {each}, as a "
                    f"cut of {UNITS[site.kind]} leaves it; is it of another number of heads?"
                )
            found[name] = size // each
        (first, units), *rest = found.items()
        for name, other in rest:
            if other != units:
                raise ValueError(
                    f"{what}: {named(first)} keeps {units} of {site.units} {UNITS[site.kind]}, {named(name)} keeps "
                    f"{other}; a cut leaves both as many, so the file is damaged or of another code"
                )
        kept[site.name] = units
    return kept


def plan_of(sites: Sequence[Site], kept: Mapping[str, int]) -> Plan:
    """The plan that keeps the first units of each site, as many as are left."""
    return Plan.of({site.name: range(kept[site.name]) for site in sites}, sites)


def attend_at_cut_scale(sites: Iterable[Site], kept: Mapping[str, int], weights: dict[str, Tensor]) -> int:
    """Let cut attentions run at ``1 / sqrt`` of their cut head size, as the authors' code runs them.

    A module that stores the scale of the dense head size gets it by a factor ``sqrt(dense / cut)`` in its query weights
    and biases; one that derives the scale from the head size it has runs like that by itself.

    Args:
        sites: Those of the attentions that the authors retrained at that scale; others, of MLPs, are passed over.
        kept: Number of units left, by site.
        weights: Weights by their names in the model; queries are replaced, no tensor is written to.

    Returns:
        How many attentions are cut.
    """
    cut = [site for site in sites if site.kind == "head_dim" and kept[site.name] < site.units]
    for site in cut:
        if site.fold is not None:
            continue
        queries, factor = site.cuts[0], math.sqrt(site.units / kept[site.name])  # queries come first
        for name in (f"{queries.layer.name}.weight", f"{queries.layer.name}.bias"):
            if name in weights:
                rows = weights[name].shape[0] // queries.view[0]
                weights[name] = weights[name].clone()
                weights[name][:rows] *= factor
    return len(cut)


def summary(sites: Sequence[Site], kept: Mapping[str, int]) -> str:
    """How much is left, for a person to read."""
    parts = []
    for kind, label in UNITS.items():
        mine = [site for site in sites if site.kind == kind]
        left, total = sum(kept[site.name] for site in mine), sum(site.units for site in mine)
        parts.append(f"{left} of {total} {label}" if total else "")
    return f"compressed: keeps {' and '.join(part for part in parts if part)}"
