"""What can be cut in a model, and what a target would leave of it, before any training."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from upop.cost import CostModel, measure
from upop.export import load
from upop.export.directory import plan_of
from upop.families import example_inputs, find_sites
from upop.report import SitesRow, comparison, console, human, removed_table, sites_table
from upop.search import Budget, create, priorities, select
from upop.structure import Kind, Site

TARGETS = (0.25, 0.5, 0.75)


def inspect(
    checkpoint: str,
    units: Sequence[Kind] = ("head_dim", "neuron"),
    from_scratch: bool = False,
    text_length: int | None = None,
) -> None:
    """Print the sites of a model, its parameters and FLOPs, and what evenly spread targets would leave.

    For a compressed directory, print what was removed where.

    Args:
        checkpoint: Model directory, hub name or ``timm/NAME``.
        units: Unit kinds.
        from_scratch: Read only the config: random weights.
        text_length: Tokens of a text, for FLOPs; by default as many as the model has positions for.
    """
    out = console()
    compressed = plan_of(checkpoint)
    model, _ = load(checkpoint, from_scratch)
    sites = find_sites(model, compressed[1] if compressed else units)
    inputs = example_inputs(model, text_length)
    cost = CostModel(sites, measure(model, sites, inputs))
    tokens = ", ".join(f"{count} {stream}" for stream, count in cost.measured.tokens.items())
    out.print(f"[bold]{type(model).__name__}[/bold] {checkpoint}")
    out.print(
        f"{human(cost.whole('params'))} parameters, {human(cost.whole('flops'))} FLOPs per sample (tokens: {tokens})"
    )
    out.print(sites_table(_rows(sites, cost), cost.whole("params"), cost.whole("flops")))
    if compressed:
        facts = compressed[0].facts
        out.print(f"compressed: {human(facts['params']['dense'])} -> {human(facts['params']['left'])} parameters")
        return
    out.print(_targets(sites, cost))
    half = _even(sites, cost, 0.5)
    out.print("0.5 of the prunable parameters, evenly spread (a search decides where):")
    out.print(removed_table(cost.shares(half)))
    states = [("dense", cost.whole("params"), cost.whole("flops"))]
    states.append(("0.5 removed", cost.remaining(half, "params"), cost.remaining(half, "flops")))
    out.print(comparison([(name, {"params": params, "flops": flops}) for name, params, flops in states]))


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
    budget = Budget(removed, allocation="uniform", tolerance=0.2)
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
