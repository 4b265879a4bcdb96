"""Tables of a compression: what a model can lose, what it lost, and what that did to speed and quality.

Every function takes plain numbers and returns a :class:`rich.table.Table`; :func:`render` makes it text for a file.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from upop.cost import Share

NONE = "-"
CURRENCY = {"params": "parameters", "flops": "FLOPs", "latency": "latency"}
"""What a cost is of, in words."""
SHOWN_AS_ZERO = 0.005
"""What is smaller than this shows as 0.00, so that nothing is shown as a share of it."""

SIZES: dict[str, str] = {
    "params": "parameters",
    "flops": "FLOPs",
    "latency_ms": "latency, ms",
    "samples_per_s": "samples/s",
}

RECALLS: dict[str, str] = {
    **{f"i2t_r{k}": f"image to text R@{k}" for k in (1, 5, 10)},
    **{f"t2i_r{k}": f"text to image R@{k}" for k in (1, 5, 10)},
    "i2t_mean": "image to text, mean",
    "t2i_mean": "text to image, mean",
    "r1_mean": "R@1, mean of both ways",
    "mean": "mean of the recalls",
}

METRICS: dict[str, str] = {
    **RECALLS,
    **{f"itc_{name}": f"not re-ranked: {label}" for name, label in RECALLS.items()},
    "accuracy": "accuracy, %",
    **{f"accuracy_{name}": f"accuracy, {name.replace('_', '/')}, %" for name in ("yes_no", "number", "other")},
    "consistency": "consistency, %",
    **{f"bleu_{n}": f"BLEU-{n}" for n in range(1, 5)},
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr",
    "spice": "SPICE",
}


@dataclass(frozen=True)
class SitesRow:
    """The sites of one modality and kind in the dense model.

    Attributes:
        modality: Tower.
        kind: What a unit is.
        units: Units of each site, one entry a site.
        params: Parameters that the units own, over all these sites.
        flops: FLOPs that the units cost, per sample.
    """

    modality: str
    kind: str
    units: Sequence[int]
    params: int
    flops: int


def human(number: float) -> str:
    """A count as a reader says it, four digits at most.

    >>> human(150_217_000), human(89_400_000_000), human(1_024), human(17)
    ('150.2 M', '89.4 G', '1.02 K', '17')
    """
    size, unit = float(number), ""
    for larger in ("K", "M", "G", "T", "P"):
        if abs(size) < 999.95:  # 999.96 would be shown as 1000.0
            break
        size, unit = size / 1000, f" {larger}"
    if not unit:
        return f"{number:,.0f}" if number == int(number) else f"{number:.2f}"
    return f"{size:.2f}{unit}" if abs(size) < 9.995 else f"{size:.1f}{unit}"


def comparison(rows: Sequence[tuple[str, Mapping[str, float]]]) -> Table:
    """The same model in its states: one column a state, one row a fact, and the last state in percent of the first.

    Args:
        rows: Name and facts of each state, dense first. Of the facts, ``params``, ``flops`` (per sample),
            ``latency_ms`` and ``samples_per_s`` come first, each other key is a metric, in the order of its
            first appearance. A state that lacks a fact shows a dash.

    Raises:
        ValueError: If there is no state, or two have the same name.
    """
    names = [name for name, _ in rows]
    if not rows or len(set(names)) != len(names):
        raise ValueError(f"the states to compare are {names!r}; give at least one, each with its own name")
    table = Table("", *names)
    for column in table.columns[1:]:
        column.justify = "right"
    if len(rows) > 1:
        table.add_column(f"{names[-1]}, % of {names[0]}", justify="right")
    seen = list(dict.fromkeys(key for _, facts in rows for key in facts))
    for key in [*(key for key in SIZES if key in seen), *(key for key in seen if key not in SIZES)]:
        cells = [_fact(key, facts.get(key)) for _, facts in rows]
        if len(rows) > 1:
            cells.append(_percent(rows[-1][1].get(key), rows[0][1].get(key)))
        table.add_row((SIZES | METRICS).get(key, key), *cells)
    return table


def removed_table(rows: Sequence[Share]) -> Table:
    """What is kept and removed, per modality and kind, with a total.

    Units have no total: a head and a neuron do not add up.

    Args:
        rows: One for each modality and kind, with distinct parameters and FLOPs.

    Raises:
        ValueError: If there is no row, or one keeps or removes more than there is.
    """
    if not rows:
        raise ValueError("there is nothing to show: no site was given; list the sites with units that can be removed")
    table = Table("modality", "kind", "sites", "units kept", "parameters kept", "removed", "FLOPs kept", "removed")
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        removed = {"units": row.units - row.units_kept, "params": row.params_removed, "flops": row.flops_removed}
        for what, number in removed.items():
            if not 0 <= number <= getattr(row, what):
                raise ValueError(
                    f"{row.modality} {row.kind} removes {number} of {getattr(row, what)} {what}; give 0 to all of them"
                )
        units = f"{row.units_kept:,} / {row.units:,}"
        table.add_row(
            row.modality,
            row.kind,
            f"{row.sites}",
            units,
            *_kept(row.params, row.params_removed, row.flops, row.flops_removed),
        )
    table.add_section()
    sums = [sum(getattr(row, name) for row in rows) for name in ("params", "params_removed", "flops", "flops_removed")]
    table.add_row("total", "", f"{sum(row.sites for row in rows)}", "", *_kept(*sums), style="bold")
    return table


def latency_table(rows: Sequence[Share], predicted: tuple[float, float], measured: tuple[float, float]) -> Table:
    """What the table of measured times foretold of a cut, part by part, and what the cut model then took.

    Args:
        rows: What is removed where, with the latency of each modality and kind.
        predicted: Milliseconds of the whole dense and compressed model, by the table.
        measured: The same, timed afterwards.

    Raises:
        ValueError: If a dense model takes no time, or a row has no latency.
    """
    table = Table("latency", "dense, ms", "compressed, ms", "removed")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        if row.latency is None or row.latency_removed is None:
            raise ValueError(f"{row.modality} {row.kind} has no latency; leave it out, or measure it")
        dense, left = row.latency / 1e6, (row.latency - row.latency_removed) / 1e6
        name = f"{row.modality} {row.kind}: what can go"
        table.add_row(name, f"{dense:,.2f}", f"{left:,.2f}", _percent(row.latency_removed, row.latency))
    table.add_section()
    for name, (dense, left) in (("predicted", predicted), ("measured", measured)):
        if not dense > 0:
            raise ValueError(f"the dense model is {name} to take {dense!r} ms; give more than 0")
        table.add_row(f"whole model, {name}", f"{dense:,.2f}", f"{left:,.2f}", f"{100 * (1 - left / dense):.1f} %")
    return table


def sites_table(rows: Sequence[SitesRow], model_params: int, model_flops: int) -> Table:
    """Where a model can be cut, and how much of it that is.

    There is no total: heads and head-dims of one attention own the same weights.

    Args:
        rows: One for each modality and kind.
        model_params: Parameters of the whole model.
        model_flops: FLOPs of the whole model, per sample.

    Raises:
        ValueError: If there is no row, or the model has no parameters.
    """
    if not rows or model_params < 1:
        raise ValueError(
            f"there is nothing to show: {len(rows)} rows of sites in a model of {model_params!r} parameters; "
            f"give at least 1 of each"
        )
    table = Table("modality", "kind", "sites", "units per site", "parameters", "of the model", "FLOPs", "of the model")
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        low, high = min(row.units, default=0), max(row.units, default=0)
        units = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        params = [human(row.params), _percent(row.params, model_params)]
        flops = [human(row.flops), _percent(row.flops, model_flops)]
        table.add_row(row.modality, row.kind, f"{len(row.units)}", units, *params, *flops)
    return table


def render(table: Table, width: int = 120) -> str:
    """A table as plain text without colour, ``width`` characters wide at most, for files and mails."""
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def _fact(key: str, value: float | None) -> str:
    """A cell: counts in human units, everything else with two digits behind the point."""
    if value is None:
        return NONE
    return human(value) if key in ("params", "flops") else f"{value:,.2f}"


def _percent(part: float | None, whole: float | None) -> str:
    """``part`` in percent of ``whole``, or a dash where one of them is missing or the whole is shown as 0."""
    return NONE if part is None or not whole or abs(whole) < SHOWN_AS_ZERO else f"{100 * part / whole:.1f} %"


def _kept(params: int, params_removed: int, flops: int, flops_removed: int) -> list[str]:
    """The cells for what is kept and removed, in parameters and in FLOPs."""
    cells = []
    for whole, removed in ((params, params_removed), (flops, flops_removed)):
        cells += [f"{human(whole - removed)} / {human(whole)}", _percent(removed, whole)]
    return cells


def console() -> Console:
    """Where tables go: the terminal, or, where there is none, text wide enough for any of them."""
    found = Console()
    return found if found.is_terminal else Console(width=max(found.width, 120))
