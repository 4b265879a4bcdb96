"""Say in words what a scene shows, in several ways, from a small closed vocabulary.

Every caption names the background, and every thing with its colour and shape, so that each nearly tells its scene from
all others; what else it tells (places, sizes, relations, counts) and in which order differs from caption to caption.
All that a caption says is true.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

from upop.data.scenes import BACKGROUNDS, CELLS, COLOURS, SHAPES, SIZES, Scene, Thing

NUMBERS = ("zero", "one", "two", "three")
ARTICLES = {"orange": "an"}
ENTAIL = {"left of": "to the left of", "right of": "to the right of", "above": "above", "below": "below"}


def describe(scene: Scene, seed: int = 0) -> tuple[str, ...]:
    """Five different captions of a scene, in lower case and without punctuation.

    Args:
        scene: What to talk about.
        seed: Which order of words each caption takes.
    """
    generator = random.Random(f"{scene.digest} {seed}")
    return tuple(f"{tell(scene, generator)} on {scene.background}" for tell in _WAYS)


def vocabulary() -> tuple[str, ...]:
    """The words of captions, sorted, with a few that none uses; questions and statements have lists of their own."""
    words = set(_OTHER_WORDS.split())
    for phrase in (*SHAPES, *COLOURS, *SIZES, *BACKGROUNDS, *CELLS, *NUMBERS, *ENTAIL.values()):
        words.update(phrase.split())
    words.update(plural(shape) for shape in SHAPES)
    return tuple(sorted(words))


def plural(shape: str) -> str:
    """More than one of a shape.

    >>> plural("cross"), plural("star")
    ('crosses', 'stars')
    """
    return shape + ("es" if shape.endswith("s") else "s")


_OTHER_WORDS = (
    "a an and are at below above background colour different false how in is it many no not of on picture same scene "
    "shape shapes shows than the there thing things to true what which with yes"
)


def _named(thing: Thing, sized: bool = False) -> str:
    words = [thing.size, thing.colour, thing.shape] if sized else [thing.colour, thing.shape]
    return f"{ARTICLES.get(words[0], 'a')} {' '.join(words)}"


def _where(thing: Thing) -> str:
    return f"at the {thing.place}"


def _shuffled(scene: Scene, generator: random.Random) -> list[Thing]:
    return generator.sample(scene.things, len(scene.things))


def _places(scene: Scene, generator: random.Random) -> str:
    return " and ".join(f"{_named(thing)} {_where(thing)}" for thing in _shuffled(scene, generator))


def _places_first(scene: Scene, generator: random.Random) -> str:
    return " and ".join(f"{_where(thing)} is {_named(thing)}" for thing in _shuffled(scene, generator))


def _sizes(scene: Scene, generator: random.Random) -> str:
    return " and ".join(_named(thing, sized=True) for thing in _shuffled(scene, generator))


def _relations(scene: Scene, generator: random.Random) -> str:
    true = {(one, other): [] for one, _, other in scene.relations()}  # type: dict[tuple[int, int], list[str]]
    for one, relation, other in scene.relations():
        true[one, other].append(ENTAIL[relation])
    order = generator.sample(range(len(scene.things)), len(scene.things))
    words = _named(scene.things[order[0]])
    for one, other in itertools.pairwise(order):
        words += f" {generator.choice(true[one, other])} {_named(scene.things[other])}"
    return words


def _counts(scene: Scene, generator: random.Random) -> str:
    groups: dict[str, list[Thing]] = {}
    for thing in _shuffled(scene, generator):
        groups.setdefault(thing.shape, []).append(thing)
    parts = []
    for shape, things in groups.items():
        colours = " and ".join(thing.colour for thing in things)
        parts.append(_named(things[0]) if len(things) == 1 else f"{NUMBERS[len(things)]} {plural(shape)} {colours}")
    return f"{NUMBERS[len(scene.things)]} things {' and '.join(parts)}"


_WAYS: tuple[Callable[[Scene, random.Random], str], ...] = (_places, _places_first, _sizes, _relations, _counts)
