"""Paint a scene, and say which pixels belong to which of its things.

Position, size, turn, colour and noise vary from picture to picture, all drawn from the scene's own digest: the same
scene always gives the same picture, pixel by pixel, and a ``variant`` gives another picture of the same truth. Shapes
are polygons on a canvas four times as large, shrunk at the end, so that their edges are smooth.

Shapes: ``T`` things of a scene, ``S`` pixels along a side of the picture.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from upop.data.scenes import GRID, Colour, Scene, Shape, Thing

RGB = tuple[int, int, int]

FINER = 4
"""Pixels of the canvas along a side, per pixel of the picture."""
LEAST_SIDE = 16
MOST_SIDE = 2048
NOISE = 6.0
"""Standard deviation of the noise on each channel, of 255."""

JITTER = 0.07
"""How far a thing lies from the middle of its cell at most, along each side, as a fraction of the cell."""

PAINT: dict[str, RGB] = {
    "red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (235, 215, 50),
    "purple": (145, 50, 175), "orange": (240, 135, 30), "black": (25, 25, 25), "white": (235, 235, 235),
    "grey": (128, 128, 128), "brown": (110, 65, 35), "pink": (250, 170, 200), "cyan": (120, 225, 225),
}  # fmt: skip
RADIUS = {"small": 0.28, "large": 0.42}
"""Half the width of a thing, as a fraction of the cell."""


@dataclass(frozen=True)
class _Outline:
    """Where a thing lies in the picture, in fractions of its side."""

    x: float
    y: float
    radius: float
    turn: float
    paint: RGB


def draw(scene: Scene, image_size: int, variant: int = 0) -> Image.Image:
    """Paint the scene.

    Args:
        scene: What to show.
        image_size: Pixels along a side, ``S``.
        variant: Number of the picture; each has its own positions, sizes, shades and noise.

    Returns:
        A square RGB image.

    Raises:
        ValueError: If ``image_size`` is out of range.
    """
    _check_side(image_size)
    generator = _generator(scene, variant)
    outlines = [_outline(thing, generator) for thing in scene.things]
    ground = _shade(scene.background, generator, 8)
    canvas = Image.new("RGB", (image_size * FINER, image_size * FINER), ground)
    brush = ImageDraw.Draw(canvas)
    for thing, outline in zip(scene.things, outlines, strict=True):
        _paint(brush, thing.shape, outline, image_size * FINER, outline.paint, ground)
    pixels = np.asarray(canvas.reduce(FINER), dtype=np.float32)
    noise = np.random.default_rng(generator.getrandbits(32)).normal(0.0, NOISE, pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8), "RGB")


def masks(scene: Scene, image_size: int, variant: int = 0) -> Tensor:
    """The pixels of each thing in the picture that :func:`draw` paints.

    Args:
        scene: What is shown.
        image_size: Pixels along a side, ``S``.
        variant: Number of the picture.

    Returns:
        Booleans ``(T, S, S)``: whether at least half of the pixel belongs to the thing. Things never overlap.

    Raises:
        ValueError: If ``image_size`` is out of range.
    """
    _check_side(image_size)
    generator = _generator(scene, variant)
    found = []
    for thing in scene.things:
        outline = _outline(thing, generator)
        canvas = Image.new("L", (image_size * FINER, image_size * FINER), 0)
        _paint(ImageDraw.Draw(canvas), thing.shape, outline, image_size * FINER, 255, 0)
        found.append(np.asarray(canvas.reduce(FINER)) >= 128)
    return torch.from_numpy(np.stack(found))


def _check_side(image_size: int) -> None:
    if not LEAST_SIDE <= image_size <= MOST_SIDE:
        raise ValueError(f"image_size is {image_size!r} pixels; a scene is drawn with {LEAST_SIDE} to {MOST_SIDE}")


def _generator(scene: Scene, variant: int) -> random.Random:
    return random.Random(f"{scene.digest} {variant}")


def _outline(thing: Thing, generator: random.Random) -> _Outline:
    """Draw a thing's place, size, turn and shade; it never leaves its cell."""
    radius = RADIUS[thing.size] * generator.uniform(0.92, 1.08)
    room = min(JITTER, 0.5 - radius)
    x = (thing.column + 0.5 + generator.uniform(-room, room)) / GRID
    y = (thing.row + 0.5 + generator.uniform(-room, room)) / GRID
    turn = math.radians(generator.uniform(-8, 8))
    return _Outline(x, y, radius / GRID, turn, _shade(thing.colour, generator, 22))


def _shade(colour: Colour | str, generator: random.Random, most: int) -> RGB:
    red, green, blue = (min(255, max(0, value + generator.randint(-most, most))) for value in PAINT[colour])
    return red, green, blue


def _paint(
    brush: ImageDraw.ImageDraw, shape: Shape, outline: _Outline, side: int, paint: RGB | int, ground: RGB | int
) -> None:
    brush.polygon(_corners(_SHAPES[shape], outline, side), fill=paint)
    if shape == "ring":
        brush.polygon(_corners(_HOLE, outline, side), fill=ground)


def _corners(corners: Sequence[tuple[float, float]], outline: _Outline, side: int) -> list[tuple[float, float]]:
    cos, sin = math.cos(outline.turn) * outline.radius, math.sin(outline.turn) * outline.radius
    return [(side * (outline.x + cos * x - sin * y), side * (outline.y + sin * x + cos * y)) for x, y in corners]


def _rays(number: int, *lengths: float, start: float = -0.5) -> list[tuple[float, float]]:
    """Corners around the centre at the ``lengths`` in turn, the first one at ``start`` half turns (-0.5: on top)."""
    angles = [math.pi * (start + 2 * corner / number) for corner in range(number)]
    return [
        (lengths[corner % len(lengths)] * math.cos(angle), lengths[corner % len(lengths)] * math.sin(angle))
        for corner, angle in enumerate(angles)
    ]


_ARM = 0.32
_SHAPES: dict[Shape, list[tuple[float, float]]] = {
    "circle": _rays(40, 0.92),
    "square": _rays(4, 1.0, start=-0.75),
    "triangle": _rays(3, 1.0),
    "star": _rays(10, 1.0, 0.42),
    "cross": [
        (-_ARM, -0.92), (_ARM, -0.92), (_ARM, -_ARM), (0.92, -_ARM), (0.92, _ARM), (_ARM, _ARM),
        (_ARM, 0.92), (-_ARM, 0.92), (-_ARM, _ARM), (-0.92, _ARM), (-0.92, -_ARM), (-_ARM, -_ARM),
    ],
    "ring": _rays(40, 0.92),
}  # fmt: skip
_HOLE = _rays(40, 0.5)
