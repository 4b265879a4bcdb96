"""Captions are true, differ, and stay within the vocabulary."""

import random
import re

from hypothesis import given
from hypothesis import strategies as st

from upop.data.captions import describe, vocabulary
from upop.data.scenes import COLOURS, SHAPES, random_scene, scenes

anything = st.integers(0, 10**6).map(lambda seed: random_scene(random.Random(seed)))
NOUN = "|".join(SHAPES)
COLOUR = "|".join(COLOURS)


def test_the_vocabulary_is_small_and_closed():
    words = vocabulary()
    assert len(words) < 80
    assert list(words) == sorted(set(words))
    for scene in scenes("train", 1000):
        for caption in describe(scene):
            assert set(caption.split()) <= set(words)
            assert len(caption.split()) <= 30


@given(anything, st.integers(0, 3))
def test_captions_differ_and_repeat_by_seed(scene, seed):
    found = describe(scene, seed)
    assert len(set(found)) == 5
    assert found == describe(scene, seed)
    assert all(caption.endswith(f" on {scene.background}") for caption in found)


@given(anything, st.integers(0, 3))
def test_every_caption_names_every_thing(scene, seed):
    for caption in describe(scene, seed):
        for thing in scene.things:
            assert caption.split().count(thing.colour) >= scene.count(colour=thing.colour)
            assert re.search(rf"\b{thing.shape}(s|es)?\b", caption)


@given(anything, st.integers(0, 3))
def test_places_sizes_and_relations_are_true(scene, seed):
    """Every phrase of a caption is looked up in the scene, however it came to be said."""
    places, places_first, sizes, relations, counts = describe(scene, seed)
    kinds = {(thing.colour, thing.shape): thing for thing in scene.things}
    said = re.findall(rf"({COLOUR}) ({NOUN}) at the (\w+ \w+)", places)
    assert {(colour, shape): place for colour, shape, place in said} == {key: t.place for key, t in kinds.items()}
    said = re.findall(rf"at the (\w+ \w+) is an? ({COLOUR}) ({NOUN})", places_first)
    assert {(colour, shape): place for place, colour, shape in said} == {key: t.place for key, t in kinds.items()}
    said = re.findall(rf"(small|large) ({COLOUR}) ({NOUN})", sizes)
    assert {(colour, shape): size for size, colour, shape in said} == {key: t.size for key, t in kinds.items()}
    parts = re.split(
        r" (to the left of|to the right of|above|below) ", relations.removesuffix(f" on {scene.background}")
    )
    chain = [kinds[tuple(part.split()[1:])] for part in parts[::2]]
    for one, relation, other in zip(chain, parts[1::2], chain[1:], strict=False):
        across, down = other.column - one.column, other.row - one.row
        assert {"above": down, "below": -down, "to the left of": across, "to the right of": -across}[relation] > 0
    assert counts.startswith({2: "two things", 3: "three things"}[len(scene.things)])
    for number, shape in re.findall(rf"(two|three) ({NOUN})", counts):
        assert scene.count(shape=shape) == {"two": 2, "three": 3}[number]
