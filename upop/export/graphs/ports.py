"""What a graph takes and gives, and random inputs of every size that it has to stand.

A dimension is a number, or a name where it may vary: ``batch``, or ``images`` and ``texts`` where the two need not be
as many, and the lengths ``text_length`` and ``answer_length``. Dimensions of one name are one in all inputs of a graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

BATCHES = ("batch", "images", "texts")
LENGTHS = ("text_length", "answer_length")
TRACED = {"batch": 3, "images": 3, "texts": 4}
"""How many of everything a graph is made with; 1 would be taken for a constant."""
CHECKED = (
    {"batch": 1, "images": 1, "texts": 2},
    {"batch": 5, "images": 2, "texts": 5},
    {"batch": 2, "images": 4, "texts": 1},
)
"""How many it is checked with: always others. The first goes with the longest texts, the last with the shortest."""


@dataclass(frozen=True)
class Port:
    """An input.

    Attributes:
        name: What it is called in the model and in the graph.
        shape: Its dimensions; the image size is a number, since position embeddings belong to it.
        kind: ``images`` and ``states`` are real numbers, ``ids`` are tokens, ``mask`` is 1 where a token counts.
    """

    name: str
    shape: tuple[int | str, ...]
    kind: Literal["images", "states", "ids", "mask"]

    @property
    def dtype(self) -> torch.dtype:
        """Of its values."""
        return torch.int64 if self.kind in ("ids", "mask") else torch.float32


@dataclass(frozen=True)
class Output:
    """An output.

    Attributes:
        name: What it is called.
        varies: Its first dimensions, as far as they vary; the model says how many numbers come after.
        normalised: Whether its last dimension has length 1 (the L2 norm).
    """

    name: str
    varies: tuple[str, ...]
    normalised: bool = False


@dataclass(frozen=True)
class Words:
    """The tokens of a model.

    Attributes:
        count: How many there are.
        longest: Tokens of the longest text.
        end: Token that ends a text, from which some models take what they say of all of it.
        pad: Token that fills up.
    """

    count: int
    longest: int
    end: int
    pad: int


@dataclass(frozen=True)
class Graph:
    """A function of a model that becomes a file of its own.

    Attributes:
        name: What it is called, without the ending of the file.
        module: Computes it, from arguments of the names in ``inputs`` to a tensor or a tuple of them.
        inputs: What it takes.
        outputs: What it gives, in order.
        words: The tokens of its texts; ``None`` where it takes none.
    """

    name: str
    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Output, ...]
    words: Words | None = None

    def limits(self) -> dict[str, int | None]:
        """The dimensions that vary, in order, with the most that each may be; ``None`` where nothing limits it."""
        longest = self.words.longest if self.words else None
        names = [dim for port in self.inputs for dim in port.shape if isinstance(dim, str)]
        return {name: longest if name in LENGTHS else None for name in dict.fromkeys(names)}

    def traced(self) -> dict[str, int]:
        """Sizes that the graph is made with."""
        return self._sizes(TRACED, 0.5, least=2)

    def checked(self) -> list[dict[str, int]]:
        """Sizes that it is checked with: the longest texts, some of another length with padding, single tokens."""
        return [self._sizes(count, part, 1) for count, part in zip(CHECKED, (1.0, 0.3, 0.0), strict=True)]

    def _sizes(self, counts: Mapping[str, int], part: float, least: int) -> dict[str, int]:
        """Sizes of everything that varies, with texts of a part of the longest."""
        limits = self.limits()
        return {name: max(least, int(part * most)) if most else counts[name] for name, most in limits.items()}

    def sample(self, sizes: Mapping[str, int], seed: int = 0) -> dict[str, Tensor]:
        """Random inputs.

        Texts beside a mask end within it: the first where the tensor does, so that there is one without padding, and
        the others anywhere. Texts without a mask are not padded.

        Args:
            sizes: Of everything that varies.
            seed: Same seed, same inputs.
        """
        generator = torch.Generator().manual_seed(seed)
        shapes = {port.name: tuple(sizes.get(str(dim), dim) for dim in port.shape) for port in self.inputs}
        lengths = {port.shape: _lengths(shapes[port.name], generator) for port in self.inputs if port.kind == "mask"}
        values: dict[str, Tensor] = {}
        for port in self.inputs:
            shape = [int(size) for size in shapes[port.name]]
            if port.kind in ("images", "states"):
                values[port.name] = torch.randn(shape, generator=generator)
                continue
            last = lengths.get(port.shape, torch.full((shape[0],), shape[1]))[:, None]  # (B, 1)
            places = torch.arange(shape[1])  # (L)
            if port.kind == "mask":
                values[port.name] = (places < last).long()
            else:
                values[port.name] = self._texts(shape, last, places, generator)
        return values

    def _texts(self, shape: list[int], last: Tensor, places: Tensor, generator: torch.Generator) -> Tensor:
        """Random tokens ``(B, L)`` that end, and are padded, after ``last (B, 1)`` of them."""
        assert self.words is not None
        drawn = torch.randint(self.words.count, shape, generator=generator)
        ended = torch.where(places == last - 1, self.words.end, drawn)
        return torch.where(places < last, ended, self.words.pad)


def _lengths(shape: tuple[int | str, ...], generator: torch.Generator) -> Tensor:
    """How many tokens of each text count, ``(B,)``: all of the first, any number of the others."""
    count, longest = (int(size) for size in shape)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator)
    lengths[0] = longest
    return lengths
