"""Runs over two processes, started as a user starts them: the same plan, weights and metrics as one process has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.utilities import rank_zero_only

from tests.recipes import other_checkpoint, write
from tests.runs.processes import (
    CARRIED,
    LIMIT,
    ROOT,
    WEIGHTS,
    assert_killed_goes_on,
    assert_same,
    fit_here,
    free_port,
    over_two_ranks,
    settings,
    upop,
)
from upop.runs import RunDirectory


@pytest.fixture(scope="module")
def queue_runs(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path, subprocess.CompletedProcess[str]]:
    """The configuration over two ranks, the directory of the same run in one process, and how the former went."""
    folder = tmp_path_factory.mktemp("queue")
    config = settings(checkpoint, folder / "one", contrast="queue", queue_size=24, momentum=0.9)
    both = over_two_ranks(config, folder / "two")
    return both, fit_here(config), upop("fit", both)


def test_two_ranks_leave_what_one_process_leaves(
    queue_runs: tuple[dict[str, Any], Path, subprocess.CompletedProcess[str]],
) -> None:
    config, one, result = queue_runs
    two = Path(config["run_dir"])
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout.count("compressed model") == 1, "the summary is printed once"
    assert result.stderr.count("plan written to") == 1
    states = [json.loads((run / "state.json").read_text()) for run in (one, two)]
    assert list(states[1]["phases"]) == ["search", "retrain"]
    assert not list(two.rglob(".*")), "no temporary files stay"
    assert [path.name for path in sorted((two / "search/logs").iterdir())] == ["version_0"]
    assert_same(one, two, (*WEIGHTS, CARRIED))
    assert states[0]["evaluations"]["dense"] == states[1]["evaluations"]["dense"], "uneven shards, the same recalls"


@pytest.mark.slow
def test_two_ranks_contrast_their_common_batch(checkpoint: Path, tmp_path: Path) -> None:
    config = settings(checkpoint, tmp_path / "one", contrast="batch")
    config["finetune"] = {"epochs": 1, "lr": 1e-3}
    config["trainer"]["accumulate_grad_batches"] = 2
    both = over_two_ranks(config, tmp_path / "two")
    result = upop("fit", both)
    assert result.returncode == 0, result.stderr
    assert_same(fit_here(config), tmp_path / "two", ("finetune/model/model.safetensors", *WEIGHTS))


@pytest.mark.slow
def test_a_run_killed_on_two_ranks_goes_on_to_the_same_result(
    queue_runs: tuple[dict[str, Any], Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    config, _, _ = queue_runs
    assert_killed_goes_on(config, tmp_path / "broken")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_nodes_leave_what_one_process_leaves(checkpoint: Path, tmp_path: Path, strategy: str) -> None:
    config = settings(checkpoint, tmp_path / "one", contrast="queue", queue_size=24, momentum=0.9)
    both = over_two_ranks(config, tmp_path / "two")
    both["trainer"] |= {"devices": 1, "num_nodes": 2, "strategy": strategy}
    path, port = write(both, tmp_path / "two.yaml"), free_port()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    place = ["--master-addr=127.0.0.1", f"--master-port={port}"]
    nodes = [
        subprocess.Popen(
            [*launcher, *place, f"--node-rank={node}", "-m", "upop", "fit", "--config", str(path)],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in (0, 1)
    ]
    try:
        said = [node.communicate(timeout=LIMIT)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], said
    assert ["compressed model" in one for one in said] == [True, False], "the first node alone says how it went"
    assert_same(fit_here(config), tmp_path / "two", (*WEIGHTS, CARRIED))


@pytest.mark.slow
def test_two_ranks_evaluate_a_checkpoint_as_one_does(checkpoint: Path, tmp_path: Path) -> None:
    config = settings(checkpoint, tmp_path / "one")
    one = upop("test", config)
    two = upop("test", over_two_ranks(config, tmp_path / "two"))
    assert one.returncode == two.returncode == 0, two.stderr
    assert "image to text R@1" in one.stdout
    assert two.stdout == one.stdout, "printed once, the same to the digit"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["siglip", "dual_encoder"])
def test_other_dual_encoders_train_on_two_ranks(tmp_path: Path, name: str) -> None:
    checkpoint = other_checkpoint(tmp_path / name, name)
    result = upop("search", over_two_ranks(settings(checkpoint, tmp_path / "one"), tmp_path / "two"))
    assert result.returncode == 0, result.stderr


def test_only_rank_zero_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    other = RunDirectory(tmp_path / "run", {"seed": 1})
    other.begin()
    other.finish("search", {})
    other.note_evaluation("dense", {"mean": 1.0})
    assert other.done("search"), "it knows what rank 0 writes"
    assert other.evaluation("dense") == {"mean": 1.0}
    assert not (tmp_path / "run").exists()
