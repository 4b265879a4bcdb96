"""Compare search policies on real photographs, at the same total of epochs.

    python tools/bench_policies.py --removed 0.5 0.75 0.9 --seeds 42 43 --jobs 2

Every cell is one `upop fit` of configs/flickr8k_retrieval_mini.yaml with overrides, in a run directory of its own, so a
killed comparison goes on where it stood. `uniform` is the paper's policy with the same share removed at every site,
`settled` the paper's with the order of the units standing still over the second half of the search, alone or with
`uniform`. The table shows the mean of the six recalls (five galleries of 200
test photographs): after the cut -> after retraining.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

CONFIG = "configs/flickr8k_retrieval_mini.yaml"
METHODS = {
    "unified": ["--search.policy=unified"],
    "settled": ["--search.policy=unified", "--search.settle=0.5"],
    "settled_uniform": ["--search.policy=unified", "--search.settle=0.5", "--search.allocation=uniform"],
    "uniform": ["--search.policy=unified", "--search.allocation=uniform"],
    "taylor": ["--search.policy=taylor"],
    "magnitude": ["--search.policy=magnitude"],
    "random": ["--search.policy=random"],
}


@dataclass(frozen=True)
class Cell:
    """One run of the comparison."""

    method: str
    removed: float
    seed: int
    distil: bool

    @property
    def name(self) -> str:
        """Name of the cell and of its run directory."""
        return f"{self.method}_{self.removed}_{'distil' if self.distil else 'plain'}_{self.seed}"

    def command(self, directory: Path) -> list[str]:
        """The command line that makes this cell."""
        plain = [] if self.distil else ["--distill.logits=0.0", "--distill.features=0.0"]
        return [
            str(Path(sys.executable).with_name("upop")),
            "fit",
            f"--config={CONFIG}",
            f"--run_dir={directory / self.name}",
            f"--seed_everything={self.seed}",
            f"--search.seed={self.seed}",
            f"--data.init_args.seed={self.seed}",
            f"--search.removed={self.removed}",
            "--measure.seconds=1",
            "--trainer.enable_progress_bar=false",
            *METHODS[self.method],
            *plain,
        ]


def run(cell: Cell, directory: Path, threads: int) -> dict[str, dict[str, float]]:
    """Run a cell, or read it where it has been run, and return its evaluations."""
    folder = directory / cell.name
    if not (folder / "summary.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        with open(directory / f"{cell.name}.log", "a") as log:
            subprocess.run(cell.command(directory), stdout=log, stderr=log, env=environment, check=True)
        print(f"done: {cell.name}", flush=True)
    evaluations: dict[str, dict[str, float]] = json.loads((folder / "state.json").read_text())["evaluations"]
    return evaluations


def table(cells: list[Cell], results: dict[str, dict[str, dict[str, float]]]) -> Table:
    """Methods in rows, removed fractions in columns; means over the seeds."""
    fractions = sorted({cell.removed for cell in cells})
    made = Table("method", "distilled", *[f"{fraction} removed" for fraction in fractions])
    for method, distil in dict.fromkeys((cell.method, cell.distil) for cell in cells):
        row = []
        for fraction in fractions:
            mine = [
                results[cell.name]
                for cell in cells
                if (cell.method, cell.distil, cell.removed) == (method, distil, fraction)
            ]
            cut = statistics.mean(found["cut"]["mean"] for found in mine)
            end = statistics.mean(found["retrained"]["mean"] for found in mine)
            row.append(f"{cut:.2f} -> {end:.2f} ({len(mine)})")
        made.add_row(method, "yes" if distil else "no", *row)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--removed", nargs="+", type=float, default=[0.5, 0.75, 0.9], help="fractions to remove")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42])
    parser.add_argument("--distil", choices=["yes", "no", "both"], default="yes")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side; the cores are shared out")
    parser.add_argument("--directory", type=Path, default=Path("runs/bench_policies"))
    options = parser.parse_args()
    kinds = {"yes": [True], "no": [False], "both": [True, False]}[options.distil]
    cells = [
        Cell(method, removed, seed, distil)
        for seed in options.seeds
        for distil in kinds
        for removed in options.removed
        for method in options.methods
    ]
    options.directory.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    with ThreadPoolExecutor(options.jobs) as pool:
        found = list(pool.map(lambda cell: run(cell, options.directory, threads), cells))
    Console(width=120).print(table(cells, {cell.name: result for cell, result in zip(cells, found, strict=True)}))


if __name__ == "__main__":
    main()
