"""What can be cut in a model, and what a target would leave of it, before any training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from upop.cost import CostModel, measure
from upop.export.directory import plan_of
from upop.export.vetting import vet
from upop.families import build_dense, example_inputs, find_sites
from upop.report import SitesRow, comparison, console, human, removed_table, sites_table
from upop.search import Budget, create, priorities, select
from upop.structure import CURRENCIES, Kind, Site

TARGETS = (0.25, 0.5, 0.75)


def inspect(
    checkpoint: str,
    units: Sequence[Kind] = ("head_dim", "neuron"),
    text_length: int | None = None,
    start_from: Callable[[nn.Module], nn.Module] = lambda model: model,
) -> None:
    """Print the sites of a model, its parameters and FLOPs, and what evenly spread targets would leave.

    For a compressed directory, print what was removed where. Only configs and plans are read, no weights.

    Args:
        checkpoint: Model directory, hub name or ``timm/NAME``.
        units: Unit kinds.
        text_length: Tokens of a text, for FLOPs; by default as many as the model has positions for.
        start_from: What a task makes of the model of the checkpoint, see :class:`~upop.tasks.Task`.
    """
    out = console()
    vet(Path(checkpoint))
    compressed = plan_of(checkpoint)
    model = start_from(build_dense(checkpoint))
    sites = find_sites(model, compressed[1] if compressed else units)
    cost = CostModel(sites, measure(model, sites, example_inputs(model, text_length)))
    tokens = ", ".join(f"{count} {stream}" for stream, count in cost.measured.tokens.items())
    out.print(f"[bold]{type(model).__name__}[/bold] {escape(checkpoint)}" + (", compressed" if compressed else ""))
    out.print(
        f"{human(cost.whole('params'))} parameters, {human(cost.whole('flops'))} FLOPs per sample (tokens: {tokens})"
        + (" before the cut" if compressed else "")
    )
    out.print(sites_table(_rows(sites, cost), cost.whole("params"), cost.whole("flops")))
    if compressed:
        _print_cut(out, cost, compressed[0].kept(), "compressed")
        return
    out.print(_targets(sites, cost))
    out.print("0.5 of the prunable parameters, evenly spread (a search decides where):")
    _print_cut(out, cost, _even(sites, cost, 0.5), "0.5 removed")


def _print_cut(out: Console, cost: CostModel, kept: Mapping[str, int], name: str) -> None:
    """What is removed where, and the sizes before and after."""
    out.print(removed_table(cost.shares(kept)))
    dense: dict[str, float] = {currency: cost.whole(currency) for currency in CURRENCIES}
    left: dict[str, float] = {currency: cost.remaining(kept, currency) for currency in CURRENCIES}
    out.print(comparison([("dense", dense), (name, left)]))


def _rows(sites: Sequence[Site], cost: CostModel) -> list[SitesRow]:
    """One row per modality and kind."""
    rows = []
    for share in cost.shares({}):
        kinds = share.kind.split(" x ")
        units = [site.units for site in sites if site.modality == share.modality and site.kind in kinds]
        rows.append(SitesRow(share.modality, share.kind, units, share.params, share.flops))
    return rows


def _even(sites: Sequence[Site], cost: CostModel, removed: float) -> dict[str, int]:
    """Units kept per site when the target is spread evenly; whole heads may miss it a little."""
    scores = create("random", sites).scores()
    budget = Budget(removed, allocation="uniform", tolerance=0.9)
    keep = select(priorities(scores, sites, "uniform"), sites, cost, budget)
    return {name: len(units) for name, units in keep.items()}


def _targets(sites: Sequence[Site], cost: CostModel) -> Table:
    table = Table("removed of the prunable parameters", "parameters", "of the model", "FLOPs", "of the model")
    for column in table.columns[1:]:
        column.justify = "right"
    for target in TARGETS:
        kept = _even(sites, cost, target)
        cells = []
        for currency in ("params", "flops"):
            left, whole = cost.remaining(kept, currency), cost.whole(currency)
            cells += [human(left), f"{100 * left / whole:.1f} %"]
        table.add_row(f"{target}", *cells)
    return table
