"""A small world of shapes: scenes of two or three things on a 2 x 2 grid, from which pictures and words both follow.

A :class:`Scene` is the truth; :mod:`~upop.data.drawing` paints it and :mod:`~upop.data.captions` talks about it, so
that captions, questions, statements and masks can be right by construction. The world is made of code and seeds alone:
nothing is downloaded, and two machines see the same pictures.

The splits are disjoint by construction: a scene belongs to the split that its own digest names, so a held-out scene is
a combination of shapes, colours, sizes and places that training never sees.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from dataclasses import dataclass
from typing import Literal, get_args

Split = Literal["train", "val", "test"]
Shape = Literal["circle", "square", "triangle", "star", "cross", "ring"]
Colour = Literal["red", "green", "blue", "yellow", "purple", "orange"]
Size = Literal["small", "large"]
Background = Literal["black", "white", "grey", "brown", "pink", "cyan"]
Relation = Literal["left of", "right of", "above", "below"]

SPLITS: tuple[Split, ...] = get_args(Split)
SHAPES: tuple[Shape, ...] = get_args(Shape)
COLOURS: tuple[Colour, ...] = get_args(Colour)
SIZES: tuple[Size, ...] = get_args(Size)
BACKGROUNDS: tuple[Background, ...] = get_args(Background)
CELLS: tuple[str, ...] = ("top left", "top right", "bottom left", "bottom right")
GRID = 2
"""Cells along a side."""

MOST_THINGS = 3
SCENES_IN_ALL = 100_000
"""The most that :func:`scenes` is asked for."""


@dataclass(frozen=True, order=True)
class Thing:
    """One thing in a scene.

    Attributes:
        cell: Number of its place in :data:`CELLS`, row by row from the top left.
        shape: What it is.
        colour: Its colour; the shade varies from picture to picture.
        size: How much of its cell it fills.
    """

    cell: int
    shape: Shape
    colour: Colour
    size: Size

    @property
    def row(self) -> int:
        """Row of its cell, 0 at the top."""
        return self.cell // GRID

    @property
    def column(self) -> int:
        """Column of its cell, 0 at the left."""
        return self.cell % GRID

    @property
    def place(self) -> str:
        """Its cell in words."""
        return CELLS[self.cell]

    def check(self) -> None:
        """Refuse a thing that is not of this world.

        Raises:
            ValueError: If one of its attributes is none that exists.
        """
        for what, value, known in (
            ("shape", self.shape, SHAPES), ("colour", self.colour, COLOURS), ("size", self.size, SIZES),
        ):  # fmt: skip
            if value not in known:
                raise ValueError(f"a thing has {what} {value!r}; this world knows {sorted(known)}")
        if self.cell not in range(len(CELLS)):
            raise ValueError(f"a thing lies in cell {self.cell!r}; cells are numbered 0 to {len(CELLS) - 1}")


@dataclass(frozen=True)
class Scene:
    """Things on a background: what a picture shows and a caption tells.

    Things are kept in the order of their cells, so that equal scenes compare equal. No two share a cell, and no two
    share both shape and colour, so that "the red circle" is always one thing.

    Attributes:
        things: One to three things.
        background: Colour behind them.

    >>> scene = Scene((Thing(3, "star", "blue", "small"), Thing(0, "circle", "red", "large")), "black")
    >>> [thing.shape for thing in scene.things], scene.count(shape="star"), scene.relations()[0]
    (['circle', 'star'], 1, (0, 'left of', 1))
    """

    things: tuple[Thing, ...]
    background: Background

    def __post_init__(self) -> None:
        for thing in self.things:
            thing.check()
        object.__setattr__(self, "things", tuple(sorted(self.things)))
        if not 1 <= len(self.things) <= MOST_THINGS:
            raise ValueError(f"a scene has {len(self.things)} things; it holds 1 to {MOST_THINGS}")
        if self.background not in BACKGROUNDS:
            raise ValueError(f"background {self.background!r} is none of {sorted(BACKGROUNDS)}")
        if len({thing.cell for thing in self.things}) < len(self.things):
            raise ValueError(f"two things share a cell: {[thing.cell for thing in self.things]}; give each its own")
        if len({(thing.shape, thing.colour) for thing in self.things}) < len(self.things):
            raise ValueError("two things share shape and colour; a caption could not tell them apart")

    @property
    def key(self) -> str:
        """The scene as one line of text: equal for equal scenes only."""
        things = ", ".join(f"{thing.size} {thing.colour} {thing.shape} at {thing.place}" for thing in self.things)
        return f"{things} on {self.background}"

    @property
    def digest(self) -> int:
        """A number drawn from :attr:`key`, the same on every machine."""
        return int.from_bytes(hashlib.sha256(self.key.encode()).digest()[:8], "big")

    @property
    def split(self) -> Split:
        """The split it belongs to: eight tenths of all scenes train, one tenth each val and test."""
        tenth = self.digest % 10
        return "test" if tenth == 0 else "val" if tenth == 1 else "train"

    @property
    def label(self) -> str:
        """A class label: the shape of its first large thing, or of its first thing where none is large."""
        return next((thing.shape for thing in self.things if thing.size == "large"), self.things[0].shape)

    def count(self, shape: Shape | None = None, colour: Colour | None = None, size: Size | None = None) -> int:
        """Number of things with all of the attributes given."""
        return sum(
            (shape is None or thing.shape == shape)
            and (colour is None or thing.colour == colour)
            and (size is None or thing.size == size)
            for thing in self.things
        )

    def relations(self) -> tuple[tuple[int, Relation, int], ...]:
        """All true relations as (number of a thing, relation, number of another), by their columns and rows."""
        found: list[tuple[int, Relation, int]] = []
        for one, other in itertools.permutations(range(len(self.things)), 2):
            a, b = self.things[one], self.things[other]
            if a.column != b.column:
                found.append((one, "left of" if a.column < b.column else "right of", other))
            if a.row != b.row:
                found.append((one, "above" if a.row < b.row else "below", other))
        return tuple(found)


def random_scene(generator: random.Random) -> Scene:
    """A scene of two or three things, drawn evenly."""
    number = generator.randint(2, MOST_THINGS)
    kinds = generator.sample([(shape, colour) for shape in SHAPES for colour in COLOURS], number)
    cells = generator.sample(range(len(CELLS)), number)
    things = tuple(
        Thing(cell, shape, colour, generator.choice(SIZES)) for cell, (shape, colour) in zip(cells, kinds, strict=True)
    )
    return Scene(things, generator.choice(BACKGROUNDS))


def scenes(split: Split, count: int, seed: int = 0) -> list[Scene]:
    """Different scenes of one split.

    The first scenes of a longer list are the shorter list, so that a smaller training set is part of a larger one.

    Args:
        split: Which split; no scene belongs to two.
        count: How many scenes, at least 1.
        seed: Which scenes of the split.

    Raises:
        ValueError: If the split is unknown or ``count`` is out of range.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {sorted(SPLITS)}")
    if not 1 <= count <= SCENES_IN_ALL:
        raise ValueError(f"{count} scenes asked for; ask for 1 to {SCENES_IN_ALL}")
    generator = random.Random(f"{split} {seed}")
    found: dict[Scene, None] = {}
    while len(found) < count:
        scene = random_scene(generator)
        if scene.split == split:
            found[scene] = None
    return list(found)
