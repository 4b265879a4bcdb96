"""What ends a run, and how that is told."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import AsyncCheckpointIO
from lightning.pytorch.plugins.environments import SLURMEnvironment

from upop.files import DiskFullError
from upop.runs.checkpoints import WholeCheckpointIO
from upop.runs.signals import Stopped
from upop.runs.supervision import current_signals, supervise, supervised


def trainer(**arguments: object) -> Trainer:
    return Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, **arguments)


def test_a_signal_ends_the_block_with_its_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop, supervised(tmp_path), supervised(tmp_path / "within"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.value.code == 143
    assert capsys.readouterr().err == (
        "\nupop: stopped by SIGTERM; run the same command again to go on where it stood\n"
    )
    assert signal.getsignal(signal.SIGTERM) == before


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    error = KeyError("mine")
    with pytest.raises(KeyError) as found, supervised(tmp_path):
        raise error
    assert found.value is error
    with pytest.raises(KeyboardInterrupt), supervised(tmp_path):
        raise KeyboardInterrupt


def test_a_full_disk_is_told_by_the_file_it_befell_though_another_error_followed(tmp_path: Path) -> None:
    later = OSError(errno.ENOSPC, "while the log was closed")
    later.__context__ = DiskFullError("the checkpoint")
    with pytest.raises(DiskFullError, match="^the checkpoint$"), supervised(tmp_path):
        raise later


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_that_nobody_has_explained_is_that_of_the_run(number: int, tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match=f"no room for '{tmp_path}': .* are free on its disk"), supervised(tmp_path):
        raise OSError(number, os.strerror(number))


def test_a_trainer_writes_whole_checkpoints_and_leaves_signals_alone(tmp_path: Path) -> None:
    free = supervise(trainer())
    assert type(free.strategy.checkpoint_io) is WholeCheckpointIO
    before = signal.getsignal(signal.SIGTERM)
    free._signal_connector.register_signal_handlers()
    assert signal.getsignal(signal.SIGTERM) != before, "outside of a run signals are Lightning's"
    free._signal_connector.teardown()
    with supervised(tmp_path):
        ours = signal.getsignal(signal.SIGTERM)
        supervise(trainer())._signal_connector.register_signal_handlers()
        assert signal.getsignal(signal.SIGTERM) == ours


def test_a_checkpoint_io_of_the_user_s_stays() -> None:
    mine = AsyncCheckpointIO()
    assert supervise(trainer(plugins=[mine])).strategy.checkpoint_io is mine


def test_slurm_s_settings_of_lightning_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with supervised(tmp_path):
        supervise(trainer(plugins=[SLURMEnvironment(auto_requeue=False)]))
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
        supervise(trainer(plugins=[SLURMEnvironment(requeue_signal=signal.SIGUSR2)]))
        assert current_signals().requeues(signal.SIGUSR2)
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGUSR2)
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
