"""The same global batch in one process and in two: BLIP's tasks select the same units by the same sums of gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.runs.blip_searches import TASKS, both, search_twice
from tests.runs.processes import assert_same_search, close, over_two_ranks


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the runs of every task, in ``<task>/one`` and ``<task>/two``."""
    return search_twice(tmp_path_factory.mktemp("global_batch"), over_two_ranks)


def moments(checkpoint: dict[str, Any]) -> dict[int, Tensor]:
    """The mean of the gradients that Adam kept, by parameter."""
    return {number: state["exp_avg"] for number, state in checkpoint["optimizer_states"][0]["state"].items()}


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_two_ranks_select_what_one_process_selects(runs: Path, task: str) -> None:
    one, two = both(runs, task)
    means = [moments(checkpoint) for checkpoint in assert_same_search(one, two)]
    assert len(means[0]) == len(means[1]) > 50
    for number, mean in means[0].items():
        close(means[1][number], mean, f"gradient of parameter {number}")
    scores = [json.loads((run / "state.json").read_text())["evaluations"] for run in (one, two)]
    for state in ("dense", "cut"):
        assert scores[1][state] == pytest.approx(scores[0][state]), state
