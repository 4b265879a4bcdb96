"""What the page knows of a run: the content of its summary.json, or what there is of one, checked and in types."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from upop.cost import Share
from upop.messages import closest
from upop.report.tables import METRICS, NONE, SHOWN_AS_ZERO, SIZES, human

MAIN = ("mean", "accuracy", "cider")
"""Metrics that stand for a whole task, in the order of preference: retrieval, questions and reasoning, captioning."""
LAST = "retrained"
BY = ("predicted", "measured")
"""What says how long the compressed model takes: the table that a budget of latency goes by, and the clock."""
SPACE = "\u00a0"
"""Between a number and its unit, where no line may break."""


@dataclass(frozen=True)
class KeptSite:
    """How many units of a site are kept.

    Attributes:
        name: The block's module path, a dot, and the kind.
        kind: ``head``, ``head_dim`` or ``neuron``.
        modality: Tower.
        depth: Number of the layer, from 0.
        units: Units of the dense site.
        units_kept: Units that the plan keeps.
    """

    name: str
    kind: str
    modality: str
    depth: int
    units: int
    units_kept: int

    @property
    def block(self) -> str:
        """Module path of the block.

        >>> KeptSite("bert.layer.3.crossattention.self.head", "head", "fusion", 3, 12, 6).block
        'bert.layer.3.crossattention.self'
        """
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Unfinished:
    """Why a run is not finished.

    Attributes:
        phases: What has become of each phase, in their order and in words: ``done``, ``next``, ``to come``, ...
        go_on: Command that goes on with it.
    """

    phases: Mapping[str, str]
    go_on: str


@dataclass(frozen=True)
class Run:
    """A run, as far as it went: of one that is not finished, whatever is not known yet is empty or lacks.

    Attributes:
        name: What a reader calls it, unique on a page.
        version: Version of upop that ran it; empty where it is not known.
        recipe: ``task``, ``data``, ``checkpoint`` and ``seed``.
        states: Sizes, speed and metrics of the model, by state: ``dense``, ``cut``, ``retrained``.
        speed: How the speed was measured, by model: ``dense``, ``compressed``.
        removed: What is removed where, by modality and kind.
        sites: What is kept at each site, in the order of the model.
        target: Fraction of the prunable cost that the search was to remove; ``None`` where it is not known.
        facts: Settings of the search, as the plan notes them.
        history: What the search logged at each update.
        seconds: Duration of each phase's last attempt.
        files: Files of the run, by what they are.
        unfinished: Why the run is not finished; ``None`` for a finished one.
        latency: Of a budget of latency, ``predicted`` and ``measured``: ``dense_ms``, ``compressed_ms`` and the
            fraction ``removed``; empty for other budgets.
    """

    name: str
    version: str
    recipe: Mapping[str, Any]
    states: Mapping[str, Mapping[str, float]]
    speed: Mapping[str, Mapping[str, Any]]
    removed: Sequence[Share]
    sites: Sequence[KeptSite]
    target: float | None
    facts: Mapping[str, Any]
    history: Sequence[Mapping[str, float]]
    seconds: Mapping[str, float | None]
    files: Mapping[str, str]
    unfinished: Unfinished | None = None
    latency: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, summary: Mapping[str, Any], name: str, unfinished: Unfinished | None = None) -> Run:
        """The run that a summary.json tells of.

        Args:
            summary: Its content. Of a run that is not finished, states and sizes that are not known may lack, and the
                target may be ``None``.
            name: What a reader calls the run.
            unfinished: Why it is not finished, if it is not.

        Raises:
            ValueError: If it lacks something, or holds it in another form.
        """
        try:
            search = summary["search"]
            states = {str(state): _numbers(facts) for state, facts in summary["states"].items()}
            if unfinished is None and not {"dense", LAST} <= set(states):
                raise ValueError(f"its states are {sorted(states)}; 'dense' and {LAST!r} are needed")
            for state, facts in states.items():
                sizes = [facts[size] for size in ("params", "flops") if unfinished is None or size in facts]
                if not all(size > 0 for size in sizes):
                    raise ValueError(f"its state {state!r} has no parameters or no FLOPs")
            removed = [Share(**share) for share in summary["removed"]]
            sites = [KeptSite(**site) for site in summary["sites"]]
            for site in sites:
                if not 0 <= site.units_kept <= site.units or site.units < 1:
                    raise ValueError(f"it keeps {site.units_kept} of {site.units} units at site {site.name!r}")
            return cls(
                name,
                str(summary["upop"]),
                dict(summary["recipe"]),
                states,
                {model: dict(found) for model, found in summary["speed"].items()},
                removed,
                sites,
                None if unfinished and search["target"] is None else float(search["target"]),
                dict(search["facts"]),
                [_numbers(row) for row in search["history"]],
                dict(summary["seconds_last_attempt"]),
                {what: str(file) for what, file in summary["files"].items()},
                unfinished,
                {by: _numbers(summary["latency"][by]) for by in BY if summary.get("latency")},
            )
        except KeyError as error:
            raise ValueError(f"it lacks {error.args[0]!r}") from error
        except (TypeError, AttributeError) as error:
            raise ValueError(f"it holds something in another form ({error})") from error

    @property
    def task(self) -> str:
        """What was learnt from what."""
        return f"{self.recipe.get('task', NONE)} on {self.recipe.get('data', NONE)}"

    @property
    def last(self) -> str:
        """The last state of the compressed model that there is, ``cut`` of a run that was not retrained yet."""
        return next((state for state in (LAST, "cut") if state in self.states), LAST)

    @property
    def metrics(self) -> list[str]:
        """Names of what was measured of the finished model's quality; before there is one, of any state's."""
        measured = [self.states[LAST]] if LAST in self.states else self.states.values()
        return [key for key in dict.fromkeys(key for facts in measured for key in facts) if key not in SIZES]

    def main_metric(self) -> str | None:
        """The metric that stands for the task: the first of :data:`MAIN` that was measured, else the first at all."""
        return next((key for key in (*MAIN, *self.metrics) if key in self.metrics), None)

    def value(self, state: str, key: str) -> float | None:
        """A fact of a state, where it was measured and is a number."""
        found = self.states.get(state, {}).get(key)
        return found if found is not None and math.isfinite(found) else None

    def share(self, key: str) -> float | None:
        """A fact of the compressed model, as far as it got, as a fraction of the dense model's."""
        dense, last = self.value("dense", key), self.value(self.last, key)
        return None if last is None or dense is None or abs(dense) < SHOWN_AS_ZERO else last / dense


def check_metric(metric: str, runs: Sequence[Run]) -> None:
    """Refuse a metric that one of the runs does not have; an unfinished one may have measured nothing yet.

    Raises:
        ValueError: With the metrics that all runs share.
    """
    measured = [run for run in runs if run.metrics or run.unfinished is None]
    if not measured:
        raise ValueError(f"nothing was measured yet, so there is no metric {metric!r}; leave --metric out")
    for run in measured:
        if metric not in run.metrics:
            shared = [key for key in measured[0].metrics if all(key in other.metrics for other in measured)]
            hint = f"all runs have {shared}" if shared else "the runs share no metric; leave --metric out"
            raise ValueError(f"run {run.name!r} has no metric {metric!r}; {hint}{closest(metric, shared)}")


def label(key: str) -> str:
    """A fact as a reader calls it."""
    return (SIZES | METRICS).get(key, key)


def shown(key: str, value: float | None) -> str:
    """A fact as a reader sees it: counts in human units, all else with two digits behind the point."""
    if value is None or not math.isfinite(value):
        return NONE
    return human(value).replace(" ", SPACE) if key in ("params", "flops") else f"{value:,.2f}"


def percent(part: float | None) -> str:
    r"""A fraction in percent.

    >>> percent(0.5408), percent(None)
    ('54.1\xa0%', '-')
    """
    return NONE if part is None or not math.isfinite(part) else f"{100 * part:.1f}{SPACE}%"


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {str(key): value if isinstance(value, int) else float(value) for key, value in row.items()}
