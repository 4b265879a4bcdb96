"""Runs that are stopped within a phase."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from lightning.pytorch import Trainer


@contextmanager
def stopped_in_the_second_epoch() -> Iterator[None]:
    """In this with-block training is interrupted at the first batch of its second epoch, which has to happen."""
    original = Trainer.fit
    with pytest.MonkeyPatch.context() as patched:

        def stopped(self: Trainer, model: Any, **arguments: Any) -> None:
            begin = type(model).on_train_batch_start

            def stop(task: Any, *batch: Any) -> Any:
                if self.current_epoch == 1:
                    raise KeyboardInterrupt
                return begin(task, *batch)

            patched.setattr(type(model), "on_train_batch_start", stop, raising=False)
            original(self, model, **arguments)

        patched.setattr(Trainer, "fit", stopped)
        with pytest.raises(KeyboardInterrupt):
            yield
