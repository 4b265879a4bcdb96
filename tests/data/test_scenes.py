"""Scenes keep their promises: different, disjoint, and true."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upop.data.scenes import (
    BACKGROUNDS,
    CELLS,
    COLOURS,
    SHAPES,
    SIZES,
    SPLITS,
    Scene,
    Thing,
    random_scene,
    scenes,
)  # fmt: skip

anything = st.integers(0, 10**6).map(lambda seed: random_scene(random.Random(seed)))


def test_splits_share_no_scene_and_hold_as_many_as_asked():
    found = {split: scenes(split, 300) for split in SPLITS}
    for split, of_split in found.items():
        assert len(set(of_split)) == 300
        assert {scene.split for scene in of_split} == {split}
    assert len({scene.key for of_split in found.values() for scene in of_split}) == 900
    assert scenes("train", 50) == found["train"][:50]
    assert scenes("train", 50, seed=1) != found["train"][:50]


def test_the_scenes_are_the_same_on_every_machine():
    """A golden value of this very generator: another one would silently change every number measured on the shapes."""
    assert scenes("test", 1)[0].key == GOLDEN


GOLDEN = "small purple cross at top right, large blue ring at bottom left, large orange star at bottom right on black"


@given(anything)
def test_a_scene_does_not_depend_on_the_order_of_its_things(scene):
    again = Scene(tuple(reversed(scene.things)), scene.background)
    assert again == scene
    assert (again.key, again.digest, again.split) == (scene.key, scene.digest, scene.split)


@given(anything)
def test_relations_are_those_of_the_cells_names(scene):
    """Read off the names of the cells, not their numbers."""
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    found = set(scene.relations())
    for one, relation, other in found:
        assert (other, opposite[relation], one) in found
    for one, a in enumerate(scene.things):
        for other, b in enumerate(scene.things):
            assert ((one, "left of", other) in found) == ("left" in a.place and "right" in b.place)
            assert ((one, "above", other) in found) == ("top" in a.place and "bottom" in b.place)


@given(anything)
def test_counts_add_up(scene):
    assert scene.count() == len(scene.things) in (2, 3)
    assert sum(scene.count(shape=shape) for shape in SHAPES) == scene.count()
    assert sum(scene.count(colour=colour, size=size) for colour in COLOURS for size in SIZES) == scene.count()
    assert scene.label in {thing.shape for thing in scene.things}
    assert all(scene.count(shape=thing.shape, colour=thing.colour) == 1 for thing in scene.things)


THING = Thing(0, "circle", "red", "small")


@pytest.mark.parametrize(
    ("things", "background", "message"),
    [
        ((), "black", "a scene has 0 things; it holds 1 to 3"),
        ((THING, Thing(0, "star", "red", "small")), "black", r"two things share a cell: \[0, 0\]"),
        ((THING, Thing(1, "circle", "red", "large")), "black", "two things share shape and colour"),
        ((THING,), "plaid", r"background 'plaid' is none of \['black'"),
        ((Thing(9, "star", "red", "small"),), "black", "a thing lies in cell 9; cells are numbered 0 to 3"),
        ((Thing(0, "blob", "red", "small"),), "black", r"a thing has shape 'blob'; this world knows \['circle'"),
        ((Thing(0, "star", "mauve", "small"),), "black", "a thing has colour 'mauve'"),
        ((Thing(0, "star", "red", "tiny"),), "black", "a thing has size 'tiny'"),
    ],
)
def test_impossible_scenes_are_refused(things, background, message):
    with pytest.raises(ValueError, match=message):
        Scene(things, background)


def test_impossible_wishes_are_refused():
    with pytest.raises(ValueError, match="0 scenes asked for; ask for 1 to 100000"):
        scenes("train", 0)
    with pytest.raises(ValueError, match=r"split 'dev' is none of \['test', 'train', 'val'\]"):
        scenes("dev", 3)


def test_the_world_is_used_evenly():
    found = scenes("train", 1000)
    for known, values in (
        (SHAPES, [thing.shape for scene in found for thing in scene.things]),
        (COLOURS, [thing.colour for scene in found for thing in scene.things]),
        (CELLS, [thing.place for scene in found for thing in scene.things]),
        (BACKGROUNDS, [scene.background for scene in found]),
    ):
        assert all(0.7 < values.count(value) * len(known) / len(values) < 1.3 for value in known)
