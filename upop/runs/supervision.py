"""What surrounds a run: signals, the other ranks, and a disk that may be full. Whatever ends it ends it in one line."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from upop.files import DiskFullError, full_disk_explained, is_full_disk
from upop.runs.checkpoints import WholeCheckpointIO
from upop.runs.signals import Signals, Stopped, requeue
from upop.runs.watchdog import AGAIN, RankLostError, Watchdog


class _Supervisor:
    """Signals and watchdog of this process."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.signals = Signals()
        self.watchdog = Watchdog(self.before_exit)
        self.requeued: str | None = None

    def before_exit(self, code: int) -> None:
        """Have SLURM queue the job again, where the signal asks for it; once."""
        if self.requeued is None and self.signals.requeues(code - 128):
            self.requeued = requeue() or ""


_current: _Supervisor | None = None


def current_signals() -> Signals:
    """Those of the run; outside of one, some that nobody sends."""
    return _current.signals if _current is not None else Signals()


@contextmanager
def supervised(folder: Path) -> Iterator[None]:
    """A with-block in which a run may be told to stop, lose a rank or run out of disk; within another, nothing.

    Args:
        folder: Directory of the run.

    Raises:
        SystemExit: With 128 + the number of the signal that stopped the run, once nothing is left to be lost.
        RankLostError: If another rank has stopped first.
        DiskFullError: If there was no room for a file.
    """
    global _current
    if _current is not None and _current.process == os.getpid():
        yield
        return
    _current = this = _Supervisor()
    this.signals.listen(signal.SIGTERM)
    try:
        yield
        this.watchdog.leave("done")
    except BaseException as error:
        this.signals.leaving = True
        reason = _reason(error, folder, this)
        if isinstance(reason, KeyboardInterrupt):
            this.watchdog.leave("stopped", code=128 + signal.SIGINT)
            raise
        if isinstance(reason, Stopped):
            this.watchdog.leave("stopped", code=reason.code)
            _say_stopped(reason, this)
            raise SystemExit(reason.code) from None
        this.watchdog.leave("failed", _one_line(reason), 2)
        if reason is error:
            raise
        raise reason from error
    finally:
        this.signals.close()
        _current = None


def _reason(error: BaseException, folder: Path, this: _Supervisor) -> BaseException:
    """What an error that ends the run comes from."""
    if isinstance(error, Exception) and is_full_disk(error):
        return _disk_full(error, folder)
    if isinstance(error, Exception) and this.signals.received:  # such as a loader whose workers were told to stop, too
        return Stopped(this.signals.received)
    if isinstance(error, RuntimeError) and (lost := this.watchdog.lost(1.0)):
        if lost.kind == "stopped":
            return Stopped(lost.code - 128)
        return RankLostError(lost.line().removeprefix("error: "))
    return error


def _disk_full(error: BaseException, folder: Path) -> BaseException:
    """The error that names the file, which another may have followed; else one that names the run."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, DiskFullError):
            return found
        found = found.__cause__ or found.__context__
    try:
        with full_disk_explained(folder):
            raise error
    except DiskFullError as explained:
        return explained


@rank_zero_only
def _say_stopped(stop: Stopped, this: _Supervisor) -> None:
    this.before_exit(stop.code)
    again = f"job {this.requeued} is requeued and goes on where it stood" if this.requeued else AGAIN
    print(f"\nupop: stopped by {stop.signal.name}; {again}", file=sys.stderr, flush=True)


def _one_line(error: BaseException) -> str:
    return re.sub(r"\s+", " ", str(error).strip()) or type(error).__name__


class Watch(Callback):
    """Connects the ranks that watch one another, once a Trainer has started them."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Every rank comes through here."""
        if _current is not None and _current.process == os.getpid():
            _current.watchdog.start(trainer.strategy)


def supervise(trainer: Trainer) -> Trainer:
    """Have a Trainer write whole checkpoints, and leave signals to the run that it belongs to, if it does.

    Args:
        trainer: A new one.

    Returns:
        The same.
    """
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpointIO()
    if _current is not None:
        _current.signals.take_over(trainer)
    return trainer
