"""Pictures show what the scene says, each time the same, and the masks are where the paint is."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from upop.data.drawing import PAINT, draw, masks
from upop.data.scenes import GRID, SHAPES, Scene, Thing, random_scene, scenes


def grown(mask, steps):
    for _ in range(steps):
        edged = np.pad(mask, 1)
        mask = edged[1:-1, 1:-1] | edged[2:, 1:-1] | edged[:-2, 1:-1] | edged[1:-1, 2:] | edged[1:-1, :-2]
    return mask


def has_hole(mask):
    flooded = Image.fromarray(np.pad(mask, 1).astype(np.uint8) * 255).copy()
    ImageDraw.floodfill(flooded, (0, 0), 255)
    return bool((np.asarray(flooded) == 0).any())


anything = st.integers(0, 10**6).map(lambda seed: random_scene(random.Random(seed)))


def test_a_picture_is_the_same_each_time_and_variants_differ():
    scene = scenes("test", 1)[0]
    first = draw(scene, 64)
    assert (first.mode, first.size) == ("RGB", (64, 64))
    assert first.tobytes() == draw(scene, 64).tobytes()
    assert first.tobytes() != draw(scene, 64, variant=1).tobytes()
    assert draw(scene, 48).size == (48, 48)


@given(anything, st.integers(0, 3), st.sampled_from([48, 64, 96]))
@settings(max_examples=30, deadline=None)
def test_masks_lie_in_their_cells_and_hold_the_colour_of_the_thing(scene, variant, side):
    pixels = np.asarray(draw(scene, side, variant), dtype=float)
    found = masks(scene, side, variant).numpy()
    assert found.shape == (len(scene.things), side, side)
    assert found.sum(0).max() <= 1, "two things overlap"
    for thing, mask in zip(scene.things, found, strict=True):
        inside = ~grown(~mask, 1)
        assert inside.sum() > 5
        rows, columns = np.nonzero(mask)
        assert set((rows * GRID) // side) == {thing.row}
        assert set((columns * GRID) // side) == {thing.column}
        assert np.abs(pixels[inside].mean(0) - PAINT[thing.colour]).max() < 35
    outside = ~grown(found.any(0), 2)
    assert np.abs(pixels[outside].mean(0) - PAINT[scene.background]).max() < 20


def test_shapes_can_be_told_apart_by_their_masks():
    """By topology and by how much of its box each fills: facts of geometry, not of this code."""
    found = {shape: masks(Scene((Thing(0, shape, "red", "large"),), "white"), 256)[0].numpy() for shape in SHAPES}
    assert [shape for shape, mask in found.items() if has_hole(mask)] == ["ring"]
    fill = {}
    for shape, mask in found.items():
        rows, columns = np.nonzero(mask)
        fill[shape] = mask.sum() / ((np.ptp(rows) + 1) * (np.ptp(columns) + 1))
    assert fill["circle"] == pytest.approx(np.pi / 4, abs=0.02)
    assert fill["star"] < fill["triangle"] < fill["cross"] < fill["circle"]


def test_large_is_larger_than_small():
    for shape in SHAPES:
        sizes = [masks(Scene((Thing(3, shape, "blue", size),), "grey"), 64).sum() for size in ("small", "large")]
        assert sizes[1] > 1.5 * sizes[0]


@pytest.mark.parametrize("paint", [draw, masks])
@pytest.mark.parametrize("side", [0, 8, 5000])
def test_absurd_sizes_are_refused(paint, side):
    with pytest.raises(ValueError, match=f"image_size is {side} pixels; a scene is drawn with 16 to 2048"):
        paint(scenes("test", 1)[0], side)
