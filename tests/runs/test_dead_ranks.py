"""A rank that dies takes the run with it within seconds, and everybody is told which it was and why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer

from tests.recipes import write
from tests.runs.processes import ROOT, alive, ended_by, free_port, over_two_ranks, settings

SECONDS = 20.0
"""Within which all has to be over."""


class Fall(Callback):
    """Ends its rank in the third step as ``UPOP_TEST_FALL`` says: ``WAY RANK``, and notes when."""

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        way, rank = (os.environ.get("UPOP_TEST_FALL") or "never 0").split()
        if trainer.global_step != 2 or trainer.global_rank != int(rank):
            return
        Path(trainer.default_root_dir, "fell").write_text("now")
        if way == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if way == "raised":
            raise ValueError("image 7 is\nbroken")
        if way == "crashed":
            raise KeyError("a fault of the code")


def fallen(config: dict[str, Any], *launcher: str, **environment: str) -> tuple[list[int], str]:
    """Run on two ranks until one falls; the exit codes of what was started, and what was said."""
    path = write(config, Path(config["run_dir"]).with_suffix(".yaml"))
    marker = Path(config["run_dir"]) / "search" / "fell"
    ranks = [{"SLURM_PROCID": rank, "SLURM_LOCALID": rank} for rank in "01"] if "SLURM_NTASKS" in environment else [{}]
    said = path.with_suffix(".stderr").open("w+")
    processes = [
        subprocess.Popen(
            [*(launcher or (sys.executable, "-m")), "upop", "search", "--config", str(path)],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment | rank,
            stdout=subprocess.DEVNULL,
            stderr=said,
            process_group=0,
        )
        for rank in ranks
    ]
    try:
        limit = time.monotonic() + 150
        while not marker.exists() and processes[0].poll() is None and time.monotonic() < limit:
            time.sleep(0.1)
        for process in processes:
            process.wait(timeout=SECONDS)
        for process in processes:
            ended_by(process.pid, SECONDS)
    finally:
        for process in processes:
            if alive(process.pid):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    said.seek(0)
    return [process.returncode for process in processes], said.read()


@pytest.fixture
def config(checkpoint: Path, tmp_path: Path) -> dict[str, Any]:
    made = over_two_ranks(settings(checkpoint, tmp_path / "run"), tmp_path / "run")
    made["distill"] = {}
    made["trainer"]["callbacks"] = [{"class_path": "tests.runs.test_dead_ranks.Fall"}]
    return made


def test_a_rank_that_is_killed_is_named(config: dict[str, Any]) -> None:
    (code,), said = fallen(config, UPOP_TEST_FALL="killed 1")
    assert code == 2, said
    lines = [line for line in said.splitlines() if line.startswith("upop: error")]
    assert len(lines) == 1
    assert lines[0].startswith("upop: error: rank 1: died without a word (process ")
    assert "it was killed, or the system was out of memory; run the same command again to go on" in lines[0]
    assert "Traceback" not in said


@pytest.mark.slow
def test_the_first_rank_may_be_killed(config: dict[str, Any]) -> None:
    (code,), said = fallen(config, UPOP_TEST_FALL="killed 0")
    assert code == -signal.SIGKILL
    assert "upop: error: rank 0: died without a word" in said


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_rank_that_fails_gives_the_others_its_error(config: dict[str, Any], rank: str) -> None:
    (code,), said = fallen(config, UPOP_TEST_FALL=f"raised {rank}")
    assert code == 2, said
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if line.startswith("upop: error")]
    assert lines
    assert all("image 7 is broken" in line for line in lines)
    if rank == "1":
        assert "upop: error: rank 1: image 7 is broken" in lines


@pytest.mark.slow
def test_a_fault_of_the_code_on_one_rank_ends_all(config: dict[str, Any]) -> None:
    (code,), said = fallen(config, UPOP_TEST_FALL="crashed 1")
    assert code == 2
    assert "KeyError: 'a fault of the code'" in said, "its traceback"
    assert "upop: error: rank 1: 'a fault of the code'" in said


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_slurm_has_started_watch_one_another(config: dict[str, Any], rank: int) -> None:
    environment = {
        "SLURM_JOB_ID": "17", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    codes, said = fallen(config, UPOP_TEST_FALL=f"killed {rank}", **environment)
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] == 2
    assert f"upop: error: rank {rank}: died without a word" in said


@pytest.mark.slow
def test_ranks_that_torchrun_has_started_end_as_well(config: dict[str, Any]) -> None:
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}")
    (code,), said = fallen(config, *launcher, "-m", UPOP_TEST_FALL="raised 1")
    assert code == 1
    assert "image 7 is broken" in said
