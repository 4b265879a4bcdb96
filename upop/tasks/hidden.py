"""Hidden states of a model's transformer blocks, recorded while it runs, and what a student learns from a teacher's.

A cut block is as wide at its ends as the dense one, whatever went from its inside, so the states of student and teacher
compare block by block without a projection.

Shapes: ``B`` rows, ``L`` tokens, ``D`` width of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from upop.families import find_blocks
from upop.messages import closest, some


class HiddenStates:
    """Records what every transformer block of a model puts out, inside a with-block.

    Gradients flow through the states as they do through the model; for a teacher, run it under ``torch.no_grad()``.
    Masks may be attached. The hooks go when the with-block ends, also by an error; the states stay.

    A block that runs more than once inside the with-block leaves the states of its *last* call: wrap the one call that
    is meant, or run that one last. A block that does not run leaves none. A model under ``torch.compile`` has to be
    compiled by a call inside a with-block: the compiler does not look for hooks that come later.

    Example::

        with HiddenStates(model) as student:
            logits = model(**inputs).logits

    Args:
        model: Dense, masked or cut model; its blocks are those of :func:`~upop.families.find_blocks`.

    Raises:
        ValueError: If no block of ``model`` is known.
    """

    def __init__(self, model: nn.Module) -> None:
        self._blocks = {path: model.get_submodule(path) for path in find_blocks(model)}
        self._handles: list[RemovableHandle] = []
        self._recorded: dict[str, Tensor] = {}

    @property
    def states(self) -> dict[str, Tensor]:
        """Output of each block that ran, ``(B, L, D)`` by module path, in the order of the blocks."""
        return {path: self._recorded[path] for path in self._blocks if path in self._recorded}

    def __enter__(self) -> HiddenStates:
        self._recorded = {}
        self._handles = [block.register_forward_hook(self._record(path)) for path, block in self._blocks.items()]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _record(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ANN401 (a forward's own)
            self._recorded[path] = output[0] if isinstance(output, tuple) else output

        return hook


def recording(model: nn.Module, wanted: bool) -> AbstractContextManager[Any]:
    """A with-block that gives the hidden states of ``model``, or ``None`` where they are not wanted."""
    return HiddenStates(model) if wanted else nullcontext()


def distil_hidden(
    student: HiddenStates,
    teacher: HiddenStates,
    masks: Mapping[str, Tensor] | None = None,
    over_ranks: Callable[[Tensor], Tensor] = torch.Tensor.clone,
) -> Tensor:
    """Squared distance of normalised hidden states, ``2 - 2 cos``, in fp32: the mean over tokens, then over blocks.

    Every block counts alike, however many tokens pass through it. The teacher gets no gradient. Ranks may have
    different numbers of valid tokens: what they find averages to the mean over the tokens of all.

    Args:
        student: States of the model that learns.
        teacher: States of the dense model for the same inputs.
        masks: Tokens that count, ``(B, L)``, 1 or true, by the module path that the blocks' paths begin with
            (``{"text_encoder": attention_mask}``). Every token of the other blocks counts.
        over_ranks: Mean of a scalar over the ranks; every rank has to come here. By default there is one rank.

    Raises:
        ValueError: If the blocks that ran differ, or their states do, or a mask fits no block or not its states.
    """
    ours, theirs = student.states, teacher.states
    _check_blocks(list(ours), list(theirs))
    masks = masks or {}
    for prefix in masks:
        if not any(_inside(path, prefix) for path in ours):
            towers = sorted({path.partition(".")[0] for path in ours})
            raise ValueError(
                f"a mask is given for {prefix!r}, in which no block ran; blocks ran in {towers}"
                f"{closest(prefix, towers)}"
            )
    tokens = {prefix: over_ranks(mask.sum().float()) for prefix, mask in masks.items()}
    distances = [_distance(path, state, theirs[path], masks, tokens) for path, state in ours.items()]
    return sum(distances[1:], start=distances[0]) / len(distances)


def _check_blocks(ours: list[str], theirs: list[str]) -> None:
    """Refuse states that do not belong to the same blocks."""
    if not ours or ours != theirs:
        only = sorted(set(ours) ^ set(theirs))
        raise ValueError(
            f"{len(ours)} blocks of the student ran and {len(theirs)} of the teacher"
            + (f", not in both: {some(only)}" if only else "")
            + "; run both models on the same inputs inside their with-blocks"
        )


def _inside(path: str, prefix: str) -> bool:
    """Whether a block belongs to the tower at ``prefix``."""
    return path == prefix or path.startswith(f"{prefix}.")


def _distance(
    path: str, ours: Tensor, theirs: Tensor, masks: Mapping[str, Tensor], tokens: Mapping[str, Tensor]
) -> Tensor:
    """Mean over the valid tokens of one block; of the masks that fit, the one with the longest prefix says which."""
    if ours.shape != theirs.shape:
        raise ValueError(
            f"states of {path} have shape {tuple(ours.shape)!r} in the student and {tuple(theirs.shape)!r} in the "
            "teacher; run both on the same inputs"
        )
    unit, target = F.normalize(ours.float(), dim=-1), F.normalize(theirs.detach().float(), dim=-1)
    distance = (unit - target).square().sum(-1)  # (B, L)
    prefix = max((prefix for prefix in masks if _inside(path, prefix)), key=len, default=None)
    if prefix is None:
        return distance.mean()
    mask = masks[prefix]
    if mask.shape != distance.shape:
        raise ValueError(
            f"the mask for {path} has shape {tuple(mask.shape)!r}, its tokens have {tuple(distance.shape)!r}; "
            "give one number per token"
        )
    return (distance * mask.to(distance.dtype)).sum() / tokens[prefix]
