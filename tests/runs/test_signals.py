"""Runs that are told to stop lose nothing, on one process and on two, with and without SLURM."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer

from tests.recipes import recipe, tiny_config
from tests.runs.processes import over_two_ranks, settings, started
from upop.runs import RunDirectory, fit, phases
from upop.runs.signals import Signals, StopBetweenSteps, Stopped, requeue

FILES = ("plan.json", "search/compressed/model.safetensors", "compressed/model.safetensors")


class Tell(Callback):
    """Tells its process to stop, as ``UPOP_TEST_TELL`` says: ``SIGNAL HOOK STEP RANK``, once."""

    def tell(self, trainer: Trainer, hook: str) -> None:
        name, where, step, rank = (os.environ.get("UPOP_TEST_TELL") or "TERM never 0 0").split()
        if (where, int(step), int(rank)) == (hook, trainer.global_step, trainer.global_rank):
            os.environ.pop("UPOP_TEST_TELL")
            os.kill(os.getpid(), signal.Signals[f"SIG{name}"])

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.tell(trainer, "batch")

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.tell(trainer, "validation")

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        self.tell(trainer, "end")


def telling(config: dict[str, Any]) -> dict[str, Any]:
    """With validation, accumulation and dropout in both towers, and a callback that sends the signal."""
    config["trainer"] |= {"callbacks": [{"class_path": "tests.runs.test_signals.Tell"}], "accumulate_grad_batches": 2}
    config["trainer"].pop("limit_val_batches", None)
    return config


def dropping(checkpoint: Path, folder: Path) -> Path:
    """A copy of a tiny CLIP that drops attention out."""
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    known = json.loads((folder / "config.json").read_text())
    for tower in ("vision_config", "text_config"):
        known[tower]["attention_dropout"] = 0.2
    (folder / "config.json").write_text(json.dumps(known))
    return folder


def run(config: dict[str, Any], path: Path) -> None:
    """Walk all phases in this process."""
    made = recipe(config | {"run_dir": str(path)}, path.with_suffix(".yaml"))
    fit(made, RunDirectory(path, made.config))


def stopped(config: dict[str, Any], path: Path, code: int = 128 + signal.SIGTERM) -> None:
    """Walk the phases until the signal comes."""
    with pytest.raises(SystemExit) as stop:
        run(config, path)
    assert stop.value.code == code


def contents(path: Path) -> dict[str, bytes]:
    """What a run gives."""
    return {name: (path / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def unbroken(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A configuration, and what its run gives when nobody stops it."""
    folder = tmp_path_factory.mktemp("unbroken")
    config = telling(tiny_config(dropping(checkpoint, folder / "clip"), folder / "run"))
    run(config, folder / "run")
    return config, contents(folder / "run")


@pytest.mark.parametrize("tell", ["TERM batch 1 0", "TERM batch 2 0", "TERM validation 2 0", "TERM end 4 0"])
def test_a_search_that_is_stopped_goes_on_to_the_same_bits(
    unbroken: tuple[dict[str, Any], dict[str, bytes]],
    tell: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config, expected = unbroken
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("UPOP_TEST_TELL", tell)
    stopped(config, tmp_path / "run")
    said = capsys.readouterr().err
    assert said.rstrip().endswith("upop: stopped by SIGTERM; run the same command again to go on where it stood")
    assert (tmp_path / "run/search/checkpoints/last.ckpt").is_file()
    assert signal.getsignal(signal.SIGTERM) == before, "the handler of before is back"
    run(config, tmp_path / "run")
    assert contents(tmp_path / "run") == expected
    assert not list(tmp_path.rglob("hpc_ckpt*"))
    assert not list(tmp_path.rglob(".*"))


def test_accumulated_batches_are_finished_before_the_run_stops(
    unbroken: tuple[dict[str, Any], dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = unbroken
    seen = []
    save = Trainer.save_checkpoint
    monkeypatch.setattr(
        Trainer, "save_checkpoint", lambda self, *a, **k: (seen.append(self.fit_loop.batch_idx), save(self, *a, **k))
    )
    monkeypatch.setenv("UPOP_TEST_TELL", "TERM batch 1 0")
    stopped(config, tmp_path / "run")
    assert seen == [3], "the second batch of the window of two in which the signal came"


@pytest.mark.parametrize("place", ["evaluate", "shrink_", "_save", "_save_carried"])
def test_a_run_that_is_stopped_between_its_phases_goes_on_to_the_same_bits(
    unbroken: tuple[dict[str, Any], dict[str, bytes]], place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, expected = unbroken
    original: Callable[..., Any] = getattr(phases, place)

    def tell(*arguments: Any, **named: Any) -> Any:
        if (tmp_path / "run/plan.json").is_file():  # after the search has been trained
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(phases, place, tell)
        stopped(config, tmp_path / "run")
    assert not (tmp_path / "run/search/compressed").exists()
    run(config, tmp_path / "run")
    assert contents(tmp_path / "run") == expected


def test_an_error_after_the_signal_is_taken_for_its_consequence(
    unbroken: tuple[dict[str, Any], dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = unbroken
    monkeypatch.setenv("UPOP_TEST_TELL", "TERM batch 1 0")

    def fails(self: StopBetweenSteps, trainer: Trainer, *_: Any) -> None:
        if self.signals.received:
            raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")

    monkeypatch.setattr("upop.runs.signals.StopBetweenSteps.on_train_batch_end", fails)
    stopped(config, tmp_path / "run")


def test_a_second_signal_does_not_disturb_the_way_out() -> None:
    signals = Signals()
    signals.listen(signal.SIGUSR2)
    with pytest.raises(Stopped) as stop:
        os.kill(os.getpid(), signal.SIGUSR2)
    signals.leaving = True
    os.kill(os.getpid(), signal.SIGUSR2)
    signals.close()
    assert stop.value.code == 128 + signal.SIGUSR2
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL


def scontrol(folder: Path, script: str = "exit 0") -> Path:
    """A stand-in for SLURM's command, which notes its arguments."""
    folder.mkdir()
    file = folder / "scontrol"
    file.write_text(f'#!/bin/sh\necho "$@" >> "{folder}/called"\n{script}\n')
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return folder


@pytest.mark.parametrize(
    ("environment", "job"),
    [({"SLURM_JOB_ID": "17"}, "17"), ({"SLURM_ARRAY_JOB_ID": "4", "SLURM_ARRAY_TASK_ID": "2"}, "4_2")],
)
def test_the_job_is_requeued_by_its_number(
    environment: dict[str, str], job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{scontrol(tmp_path / 'bin')}:{os.environ['PATH']}")
    assert requeue() == job
    assert (tmp_path / "bin/called").read_text() == f"requeue {job}\n"


@pytest.mark.parametrize(
    ("number", "script", "message"),
    [
        ("17; reboot", "exit 0", r"SLURM's job number is '17; reboot', so the job is not requeued; submit it again"),
        ("17", "echo not permitted >&2; exit 1", "job 17 could not be requeued: not permitted; submit it again"),
    ],
)
def test_a_job_that_cannot_be_requeued_is_said_to_be_so(
    number: str, script: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", number)
    monkeypatch.setenv("PATH", f"{scontrol(tmp_path / 'bin', script)}:{os.environ['PATH']}")
    with pytest.warns(UserWarning, match=message):
        assert requeue() is None


def command(config: dict[str, Any], **environment: str) -> tuple[int, str]:
    """Run ``upop fit`` as a user does, until all its processes have ended; its exit code and what it said."""
    with started("fit", config, **environment) as process:
        _, said = process.communicate(timeout=150)
    return process.returncode, said


def slurm(folder: Path) -> dict[str, str]:
    """What ``srun`` sets for one task."""
    return {
        "SLURM_JOB_ID": "17", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NNODES": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
        "PATH": f"{scontrol(folder)}:{os.environ['PATH']}",
    }  # fmt: skip


def test_slurm_s_signal_requeues_the_job_and_it_goes_on(
    unbroken: tuple[dict[str, Any], dict[str, bytes]], tmp_path: Path
) -> None:
    config, expected = unbroken
    config = config | {"run_dir": str(tmp_path / "run")}
    code, said = command(config, UPOP_TEST_TELL="USR1 batch 1 0", **slurm(tmp_path / "bin"))
    assert code == 128 + signal.SIGUSR1, said
    assert said.rstrip().endswith("upop: stopped by SIGUSR1; job 17 is requeued and goes on where it stood")
    assert (tmp_path / "bin/called").read_text() == "requeue 17\n", "once"
    assert not list(tmp_path.rglob("hpc_ckpt*"))
    run(config, tmp_path / "run")
    assert contents(tmp_path / "run") == expected


@pytest.mark.slow
def test_a_cluster_that_tells_all_processes_stops_the_loader_s_workers_no_earlier(
    unbroken: tuple[dict[str, Any], dict[str, bytes]], tmp_path: Path
) -> None:
    config, expected = unbroken
    config = json.loads(json.dumps(config)) | {"run_dir": str(tmp_path / "run")}
    config["data"]["init_args"]["num_workers"] = 1
    config["trainer"]["callbacks"] = [{"class_path": "tests.runs.test_signals.TellAll"}]
    code, said = command(config, UPOP_TEST_TELL="TERM batch 1 0")
    assert code == 128 + signal.SIGTERM, said
    assert (tmp_path / "run/search/checkpoints/last.ckpt").is_file()
    del config["trainer"]["callbacks"]
    kept = json.loads(json.dumps(config))
    kept["trainer"]["callbacks"] = [{"class_path": "tests.runs.test_signals.TellAll"}]
    run(kept, tmp_path / "run")
    assert contents(tmp_path / "run") == expected


class TellAll(Tell):
    """Has another process tell the whole group, as a cluster does, and gives its workers time to end if they would."""

    def tell(self, trainer: Trainer, hook: str) -> None:
        if os.environ.get("UPOP_TEST_TELL") == f"TERM {hook} {trainer.global_step} {trainer.global_rank}":
            os.environ.pop("UPOP_TEST_TELL")
            subprocess.run(["kill", "-TERM", "--", f"-{os.getpid()}"], check=True, start_new_session=True)
            time.sleep(1.0)


@pytest.mark.slow
@pytest.mark.parametrize("tell", ["TERM batch 1 0", "TERM batch 1 1", "TERM validation 2 0"])
def test_two_ranks_stop_together_and_go_on_to_the_same_bits(
    two_ranks: tuple[dict[str, Any], dict[str, bytes]], tell: str, tmp_path: Path
) -> None:
    config, expected = two_ranks
    config = config | {"run_dir": str(tmp_path / "run")}
    start = time.monotonic()
    code, said = command(config, UPOP_TEST_TELL=tell)
    assert code == 128 + signal.SIGTERM, said
    assert time.monotonic() - start < 90
    assert said.count("upop: stopped by SIGTERM") == 1
    assert "Traceback" not in said
    assert (tmp_path / "run/search/checkpoints/last.ckpt").is_file()
    code, said = command(config)
    assert code == 0, said
    assert contents(tmp_path / "run") == expected, "with dropout on both ranks"


@pytest.fixture(scope="module")
def two_ranks(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A configuration with dropout over two ranks, and what its run gives when nobody stops it."""
    folder = tmp_path_factory.mktemp("two")
    config = settings(dropping(checkpoint, folder / "clip"), folder / "run")
    config = over_two_ranks(telling(config), folder / "run")
    code, said = command(config)
    assert code == 0, said
    return config, contents(folder / "run")
