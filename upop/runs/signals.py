"""A run that is told to stop: it writes its checkpoint between two optimizer steps and ends; nothing is lost.

SIGTERM means stop. Under SLURM the signal of ``sbatch --signal=USR1@120`` means stop and be requeued, as Lightning's
``SLURMEnvironment`` has it (``auto_requeue``, ``requeue_signal``). Either way the checkpoint is the phase's own
``last.ckpt``, which the same command goes on from. Inside an epoch's validation the run stops at its end. Everywhere
else (loading, evaluation, the cut, between phases) it stops at once: whole files are all that counts there.

Lightning's own handlers are switched off: they write a checkpoint of another name, which would be ignored beside
``last.ckpt``, and begin a collective wherever the signal happens to arrive.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import distributed
from torch.utils.data import DataLoader, get_worker_info


class Stopped(BaseException):
    """The run stops because it was told to.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)

    @property
    def code(self) -> int:
        """Exit code: 128 + the signal's number, as a shell has it (143 for SIGTERM, 138 for SIGUSR1)."""
        return 128 + self.signal


class Signals:
    """What this process was told, and whether it may stop at once.

    Attributes:
        received: The first signal that came, if one did.
        requeue_at: The signal at which SLURM is to queue the job again, if it is.
        leaving: Whether the process is on its way out; signals are ignored then.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.requeue_at: signal.Signals | None = None
        self.leaving = False
        self._in_step = False
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def listen(self, number: int) -> None:
        """Take care of a signal from now on; only the main thread can."""
        if threading.current_thread() is threading.main_thread() and number not in self._before:
            self._before[number] = signal.signal(number, self._handle)

    def take_over(self, trainer: Trainer) -> None:
        """Listen in place of a Trainer's own handlers."""
        trainer._signal_connector.register_signal_handlers = _nothing
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            self.requeue_at = signal.Signals(environment.requeue_signal)
            self.listen(self.requeue_at)

    def close(self) -> None:
        """Put back the handlers of before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, _: object) -> None:
        if os.getpid() != self._process or self.leaving:  # a worker that was forked has the same handler
            return
        self.received = self.received or signal.Signals(number)
        if not self._in_step:
            raise Stopped(self.received)

    def wait_for_step(self) -> None:
        """From now on, stop between optimizer steps only."""
        self._in_step = True

    @contextmanager
    def training(self) -> Iterator[None]:
        """A with-block in which :meth:`wait_for_step` may be called; after it the process may stop at once again.

        Raises:
            Stopped: If a signal came after the last step.
        """
        try:
            yield
        finally:
            self._in_step = False
        if self.received:
            raise Stopped(self.received)

    def requeues(self, number: int) -> bool:
        """Whether SLURM is to queue the job again at this signal."""
        return number == self.requeue_at


class StopBetweenSteps(Checkpoint):
    """Writes the checkpoint and stops, on all ranks after the same optimizer step, once one of them was told to.

    On several ranks it costs one number that is reduced at each optimizer step.

    Args:
        signals: Of this process.
        last: The checkpoint that the phase goes on from.
    """

    def __init__(self, signals: Signals, last: Path) -> None:
        self.signals, self.last = signals, last
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the workers of the loader at work until the step is done: a cluster tells them to stop, too."""
        loader = trainer.train_dataloader
        if isinstance(loader, DataLoader) and loader.num_workers:
            loader.worker_init_fn = partial(_outlive, loader.worker_init_fn)
        self._step = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """From the first step on there is something to lose."""
        self.signals.wait_for_step()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:  # noqa: ANN401 (Lightning's own)
        """Stop here, if this batch ended with an optimizer step."""
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            self._stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop here, if the signal came in the meantime."""
        self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        told = int(self.signals.received or 0)
        if trainer.world_size > 1:
            one = torch.tensor(told, device=trainer.strategy.root_device)
            distributed.all_reduce(one, op=distributed.ReduceOp.MAX)
            told = int(one)
        if told:
            trainer.save_checkpoint(self.last)
            raise Stopped(told)


def requeue() -> str | None:
    """Ask SLURM to queue this job again.

    Returns:
        The job, or ``None`` if SLURM refuses; a warning says why.
    """
    job = os.environ.get("SLURM_JOB_ID", "")
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    if not re.fullmatch(r"\d+(_\d+)?", job):
        rank_zero_warn(f"SLURM's job number is {job!r}, so the job is not requeued; submit it again")
        return None
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        rank_zero_warn(f"job {job} could not be requeued: {str(said).strip()}; submit it again")
        return None
    return job


def _nothing() -> None:
    """What a Trainer does about signals while a run takes care of them."""


def _outlive(before: Callable[[int], object] | None, worker: int) -> None:
    """Let a loader's worker end at its process's word only, not at a signal that a cluster sends to all processes."""
    if before is not None:
        before(worker)
    if get_worker_info() is not None:
        parent = os.getppid()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey, args=(parent,), daemon=True).start()


def _obey(parent: int) -> None:
    """End this process at a SIGTERM of its parent's."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
