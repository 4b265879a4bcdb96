"""What can be said of a picture of the world of shapes: topics, and the measures of a picture that they are judged by.

The *measure* of a topic is what of one picture matters to a sentence about it. It is None where the picture does not
decide; that of something to be seen is 1.0 where it is there, 0.5 where it nearly is, and 0.0 elsewhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from upop.data.captions import ENTAIL, NUMBERS
from upop.data.questions import FORMS, OPPOSITE, VALUES, described, fits, with_article
from upop.data.scenes import BACKGROUNDS, SHAPES, SIZES, Relation, Scene, Thing

Measure = Callable[[Scene], Any]


@dataclass(frozen=True)
class Topic:
    """What a sentence is about: in words, and as what of a picture matters to it."""

    words: str
    measure: Measure


def things_by(*form: str) -> list[dict[str, str]]:
    """All that things may be, named by these attributes."""
    return [dict(zip(form, values, strict=True)) for values in itertools.product(*(VALUES[what] for what in form))]


def _seen(wanted: Mapping[str, str]) -> Topic:
    """A thing with these attributes; nearly, where one of them is there."""

    def measure(scene: Scene) -> float:
        if any(fits(thing, wanted) for thing in scene.things):
            return 1.0
        return 0.5 if any(fits(thing, {what: wanted[what]}) for thing in scene.things for what in wanted) else 0.0

    return Topic(with_article(described(wanted)), measure)


def _seen_beside(attribute: str, first: str, relation: Relation, second: str) -> Topic:
    """A thing beside another; nearly, where it is on the other side. Undecided where two of them are level."""

    def measure(scene: Scene) -> float | None:
        found = [
            _is_beside(scene, one, relation, other)
            for one, other in itertools.permutations(scene.things, 2)
            if getattr(one, attribute) == first and getattr(other, attribute) == second
        ]
        return None if None in found else max(filter(None, found), default=0.0)

    one, other = (with_article(described({attribute: value})) for value in (first, second))
    return Topic(f"{one} {ENTAIL[relation]} {other}", measure)


def _is_beside(scene: Scene, one: Thing, relation: Relation, other: Thing) -> float | None:
    """1.0 where the relation holds, 0.5 where the opposite does, and None between."""
    pair = scene.things.index(one), scene.things.index(other)
    found = [said for first, said, second in scene.relations() if (first, second) == pair]
    return 1.0 if relation in found else 0.5 if OPPOSITE[relation] in found else None


def _whole(words: str, what: Callable[[Scene], object], wanted: object) -> Topic:
    """Something about a picture as a whole."""
    return Topic(words, lambda scene: float(what(scene) == wanted))


def _only(scene: Scene, wanted: Mapping[str, str]) -> Thing | None:
    """The one thing with these attributes, None where it is not one."""
    found = [thing for thing in scene.things if fits(thing, wanted)]
    return found[0] if len(found) == 1 else None


def attribute_of(wanted: Mapping[str, str], attribute: str) -> Topic:
    """An attribute of the one thing that is meant."""
    return Topic(f"the {described(wanted)}", lambda scene: getattr(_only(scene, wanted), attribute, None))


def _claim(wanted: Mapping[str, str], attribute: str, value: str) -> Topic:
    """That the one thing that is meant has an attribute."""
    subject = attribute_of(wanted, attribute)
    words = {"shape": with_article(value), "place": f"at the {value}"}.get(attribute, value)

    def measure(scene: Scene) -> float | None:
        own = subject.measure(scene)
        return None if own is None else float(own == value)

    return Topic(f"{subject.words} is {words}", measure)


def _claim_beside(first: str, relation: Relation, second: str) -> Topic:
    """That one thing lies so towards another, both named by their shapes."""

    def measure(scene: Scene) -> float | None:
        one, other = _only(scene, {"shape": first}), _only(scene, {"shape": second})
        return None if one is None or other is None else _is_beside(scene, one, relation, other)

    return Topic(f"the {first} is {ENTAIL[relation]} the {second}", measure)


def _number(wanted: Mapping[str, str]) -> Topic:
    """How many things have these attributes."""
    return Topic(described(wanted, many=True), lambda scene: sum(fits(thing, wanted) for thing in scene.things))


def one_and_other(first: str, second: str) -> Topic:
    """The background of a picture, as the first colour, the second or neither."""
    words = f"a {first} background and the other one a {second} background"
    return Topic(words, lambda scene: {first: "first", second: "second"}.get(scene.background, "neither"))


SIGHTS = (
    *([_seen(wanted) for wanted in things_by(*form)]
      for form in (*FORMS, ("place",), ("colour", "place"), ("shape", "place"))),
    *([_seen_beside(what, first, relation, second)
       for first, second in itertools.permutations(VALUES[what], 2) for relation in OPPOSITE]
      for what in ("colour", "shape")),
    [_whole(f"a {colour} background", lambda scene: scene.background, colour) for colour in BACKGROUNDS],
    [_whole(f"exactly {NUMBERS[number]} things", lambda scene: len(scene.things), number) for number in (2, 3)],
    [_whole(f"only {size} things", lambda scene: {thing.size for thing in scene.things}, {size}) for size in SIZES],
)  # fmt: skip
"""What a picture may show, in lists of like topics."""

CLAIMS = (
    [_claim_beside(first, relation, second)
     for first, second in itertools.permutations(SHAPES, 2) for relation in OPPOSITE],
    *([_claim(wanted, what, value) for wanted in things_by(named) for value in VALUES[what]]
      for named in ("colour", "shape") for what in VALUES if what != named),
)  # fmt: skip
"""What may hold in a picture, in lists of like topics."""

COUNTED = tuple([_number(wanted) for wanted in things_by(*form)] for form in ((), ("size",), ("colour",), ("shape",)))
"""What may be counted, in lists of like topics."""
