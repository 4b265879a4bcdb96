"""What a checkpoint holds, noted in the checkpoint itself, so that a damaged one is refused before training goes on.

Lightning takes what it finds: without the state of a callback or a moment of the optimizer a run goes on all the same,
to another plan. So every name, every plain value and every tensor's dtype and shape are noted when a checkpoint is
written, and compared when it is read; the bytes of the tensors have checksums of their own in the archive.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, nn

CONTENTS = "upop_contents"
"""Key of the note: what each other key of the checkpoint holds, by its place."""
PARTS = ("state_dict", "loops", "callbacks", "optimizer_states", "lr_schedulers")
"""Keys that a phase cannot go on without."""
PLAIN = (type(None), bool, int, float, complex, str, bytes)
SHOWN = 60
"""Characters of a value that are noted; of a longer one a checksum, too."""
AGAIN = "delete it to start the phase again"


class Contents(Checkpoint):
    """Notes what a checkpoint holds. Lightning moves it behind all callbacks that may change a checkpoint."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the note; every rank does, and the one that writes has all of it."""
        checkpoint[CONTENTS] = {key: contents(value, key) for key, value in checkpoint.items() if key != CONTENTS}


def contents(value: Any, place: str) -> dict[str, str]:  # noqa: ANN401 (anything that a checkpoint holds)
    """What there is at each place of a value: plain values as they are, of tensors dtype and shape.

    >>> contents({"step": 3, "moments": {0: torch.zeros(2)}, "listed": []}, "state")
    {'state.step': '3', 'state.moments[0]': 'float32 (2,)', 'state.listed': '[]'}

    Args:
        value: Nested dictionaries and lists of tensors and plain values.
        place: Where it lies, for the names of the places in it.
    """
    if isinstance(value, Tensor):
        return {place: f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"}
    if isinstance(value, Mapping) and value:
        inner = [(f".{key}" if isinstance(key, str) else f"[{key!r}]", entry) for key, entry in value.items()]
    elif isinstance(value, (list, tuple)) and not all(type(entry) in PLAIN for entry in value):
        inner = [(f"[{number}]", entry) for number, entry in enumerate(value)]
    else:
        return {place: _said(value)}
    return {name: said for key, entry in inner for name, said in contents(entry, place + key).items()}


def difference(expected: Mapping[str, str], found: Mapping[str, str], whose: str) -> str:
    """The first difference between two notes of :func:`contents`, in words; empty where there is none.

    Args:
        expected: What there should be.
        found: What there is.
        whose: What to say of the expected, such as ``was written``.
    """
    for place, said in expected.items():
        if place not in found:
            return f"it lacks {place!r}"
        if found[place] != said:
            return f"its {place!r} is {found[place]}, but {said} {whose}"
    more = [place for place in found if place not in expected]
    return f"it has {more[0]!r}, which is not what {whose}" if more else ""


def _said(value: Any) -> str:  # noqa: ANN401 (plain, or of a type that only its callback knows)
    """A plain value, or a list or tuple of such, as text."""
    if isinstance(value, (Mapping, list, tuple)):
        text = repr(dict(value) if isinstance(value, Mapping) else list(value))
    else:
        text = repr(value) if type(value) in PLAIN else type(value).__name__
    if len(text) <= SHOWN:
        return text
    return f"{text[:SHOWN]}... (sha256 {hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:16]})"


def check_whole(last: Path, task: nn.Module) -> None:
    """Refuse a checkpoint that a phase cannot go on from as if it had not stopped.

    Args:
        last: The checkpoint. Nothing in it is executed.
        task: What the phase trains, without masks.

    Raises:
        ValueError: If it is broken or damaged, holds more than tensors and plain values, or is of another model.
    """
    found = _read(last)
    missing = set(PARTS) - set(found)
    if missing:
        raise ValueError(f"{str(last)!r} lacks {sorted(missing)}; {AGAIN}")
    noted = found.get(CONTENTS)
    if not isinstance(noted, dict) or not all(isinstance(part, dict) for part in noted.values()):
        raise ValueError(
            f"{str(last)!r} does not note what it holds: another version of upop wrote it, or it is damaged; {AGAIN}"
        )
    there = {key: contents(value, key) for key, value in found.items() if key in noted}
    fault = difference(_joined(noted), _joined(there), "was written")
    if fault:
        raise ValueError(f"{str(last)!r} is damaged: {fault}; {AGAIN}")
    weights = {_dense_name(name): value for name, value in found["state_dict"].items()}
    fault = difference(contents(task.state_dict(), "model"), contents(weights, "model"), "this run trains")
    if fault:
        raise ValueError(f"{str(last)!r} is of another model: {fault}; {AGAIN}, or give another run_dir")


def _read(last: Path) -> dict[str, Any]:
    """A checkpoint whose archive is whole; its tensors stay on the disk until somebody reads them."""
    try:
        zipped = zipfile.is_zipfile(last)
        if zipped:
            with zipfile.ZipFile(last) as archive:
                damaged = archive.testzip()  # torch.load does not look at the checksums
            if damaged:
                raise ValueError(f"the checksum of {damaged!r} is another")
        found = torch.load(last, map_location="cpu", weights_only=True, mmap=zipped)
        if not isinstance(found, dict):
            raise TypeError(f"it holds a {type(found).__name__}")
    except Exception as error:  # bytes that nobody vouches for fail in many ways
        raise ValueError(
            f"{str(last)!r} is no checkpoint to go on from: it is broken, or holds more than tensors and plain values, "
            f"and nothing in it was executed; {AGAIN}"
        ) from error
    return found


def _joined(parts: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The places of all parts."""
    return {place: said for part in parts.values() for place, said in part.items()}


def _dense_name(name: Any) -> Any:  # noqa: ANN401 (a damaged one may be anything)
    """Name of a weight without what an attached mask puts into it."""
    return name.replace(".parametrizations.", ".").removesuffix(".original") if isinstance(name, str) else name
