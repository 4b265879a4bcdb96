"""Tables on the screen, and the same ones in a Markdown file, for the benchmarks whose figures are in ``docs/``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

Cells = list[str]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left."""
    heads, *body = rows
    ruler = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, ruler, *body))


def write_between(path: Path, mark: str, text: str) -> None:
    """Put text between ``<!-- mark -->`` and ``<!-- /mark -->`` of a file, in place of what is there."""
    before, start, rest = path.read_text().partition(f"<!-- {mark} -->")
    _, end, after = rest.partition(f"<!-- /{mark} -->")
    if not start or not end:
        raise SystemExit(f"{str(path)!r} has no place for it: put '<!-- {mark} -->' and '<!-- /{mark} -->' there")
    path.write_text(f"{before}{start}\n{text}\n{end}{after}")


def show(tables: Sequence[tuple[str, Sequence[Cells]]], path: Path | None, tool: str) -> None:
    """Print tables, the first row their headings, and put them between the marks of a Markdown file, if one is given.

    Args:
        tables: Rows of each table by its name.
        path: The file; a table goes between ``<!-- tool: name -->`` and ``<!-- /tool: name -->``.
        tool: Name of the tool in the marks.
    """
    for name, rows in tables:
        table = Table(title=name)
        for number, heading in enumerate(rows[0]):
            table.add_column(heading, justify="right" if number else "left")
        for cells in rows[1:]:
            table.add_row(*cells)
        Console(width=200).print(table)
        if path:
            write_between(path, f"{tool}: {name}", markdown(rows))
