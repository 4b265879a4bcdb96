"""Ask about a scene what its picture decides: short questions with one right answer each, as in VQA v2.

A question never asks about a thing that is not there (only *yes/no* questions may), and "the red thing" is always one
thing. *Left*, *above* and the like go by columns and rows, as in captions: a shift within a cell does not count, so no
thing is asked whether it lies left of one in its own column. A thing that is the answer is called by its colour and
shape.

Who sees only the question cannot know the answer, unlike in the first VQA (Goyal et al., CVPR 2017, arXiv:1612.00837):
either the world itself is even (any colour, any corner), or a question is put only to scenes in which the same words,
filled differently, have another answer; the answer is drawn first, then the filling.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from upop.data.captions import ARTICLES, ENTAIL, NUMBERS, plural
from upop.data.scenes import BACKGROUNDS, CELLS, COLOURS, MOST_THINGS, SHAPES, SIZES, Relation, Scene, Thing

Kind = Literal["yes/no", "number", "other"]
Filling = tuple[str, ...]
"""An answer, and the words for the gaps of a question that has this answer."""

VALUES: dict[str, tuple[str, ...]] = {"size": SIZES, "colour": COLOURS, "shape": SHAPES, "place": CELLS}
"""What each attribute of a thing may be."""
LOOKS = ("size", "colour", "shape")
FORMS = tuple(form for length in (1, 2, 3) for form in itertools.combinations(LOOKS, length))
"""The sets of attributes by which a thing is described."""
SIDES = (("top", "bottom"), ("left", "right"))
"""The words of :data:`~upop.data.scenes.CELLS`: a row, then a column."""
OPPOSITE: dict[Relation, Relation] = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Question:
    """A question about one picture.

    Attributes:
        text: In lower case and without punctuation.
        answer: The one right answer, one of :data:`ANSWERS`.
        kind: Kind of the answer, as the answer types of VQA v2.
        type: What is asked for, one of :data:`TYPES`, as the question types of VQA v2.
    """

    text: str
    answer: str
    kind: Kind
    type: str


def questions(scene: Scene, seed: int = 0) -> tuple[Question, ...]:
    """About twenty questions on a scene, one of each type that can be asked of it, in random order.

    Args:
        scene: What to ask about.
        seed: Which questions are asked, in which words and order.
    """
    generator = random.Random(f"questions {scene.digest} {seed}")
    found = [question for template in _TEMPLATES if (question := template.ask(scene, generator)) is not None]
    generator.shuffle(found)
    return tuple(found)


def vocabulary() -> tuple[str, ...]:
    """Every word that a question or an answer may use, sorted."""
    ways = (word for template in _TEMPLATES for way in template.ways for word in way.split() if "{" not in word)
    gaps = (*ANSWERS, *ENTAIL.values(), *(with_article(value) for value in (*COLOURS, *SHAPES)), "larger smaller the")
    plurals = (plural(word) for word in (*SHAPES, "thing", "colour", "shape"))
    return tuple(sorted({word for phrase in (*ways, *gaps, *plurals) for word in phrase.split()}))


def described(wanted: Mapping[str, str], many: bool = False) -> str:
    """Name what has some attributes.

    >>> described({"shape": "star", "size": "small"}), described({"colour": "red", "place": "top left"}, many=True)
    ('small star', 'red things at the top left')
    """
    noun = wanted.get("shape", "thing")
    adjectives = [wanted[what] for what in ("size", "colour") if what in wanted]
    place = [f"at the {wanted['place']}"] if "place" in wanted else []
    return " ".join([*adjectives, plural(noun) if many else noun, *place])


def with_article(words: str) -> str:
    """``a`` or ``an`` before some words.

    >>> with_article("orange star")
    'an orange star'
    """
    return f"{ARTICLES.get(words.split()[0], 'a')} {words}"


def those(thing: Thing, form: Iterable[str]) -> dict[str, str]:
    """Some of the attributes of a thing."""
    return {what: getattr(thing, what) for what in form}


def fits(thing: Thing, wanted: Mapping[str, str]) -> bool:
    """Whether a thing has all attributes wanted."""
    return all(getattr(thing, what) == value for what, value in wanted.items())


@lru_cache(maxsize=64)
def _names(scene: Scene, thing: Thing, hide: str) -> list[str]:
    """All phrases that mean this thing and no other of the scene, without telling the attribute ``hide``."""
    forms = [those(thing, form) for form in (*FORMS, ("place",)) if hide not in form]
    return [f"the {described(wanted)}" for wanted in forms if sum(fits(one, wanted) for one in scene.things) == 1]


def _kind(thing: Thing) -> str:
    return described(those(thing, ("colour", "shape")))


def _beside(scene: Scene) -> list[tuple[Thing, Relation, list[Thing]]]:
    """Every thing that others are beside, by relation, and the others."""
    found: dict[tuple[int, Relation], list[Thing]] = {}
    for one, relation, other in scene.relations():
        found.setdefault((other, relation), []).append(scene.things[one])
    return [(scene.things[anchor], relation, things) for (anchor, relation), things in found.items()]


def _counts(scene: Scene, attribute: str) -> dict[str, int]:
    """Number of things by each value of an attribute that occurs."""
    values = [getattr(thing, attribute) for thing in scene.things]
    return {value: values.count(value) for value in dict.fromkeys(values)}


def _wrong(scene: Scene, thing: Thing, attribute: str, generator: random.Random) -> str:
    """A value that the thing does not have; half the time another thing's, so that seeing it somewhere is no answer."""
    there = [value for value in _counts(scene, attribute) if not fits(thing, {attribute: value})]
    anywhere = [value for value in VALUES[attribute] if not fits(thing, {attribute: value})]
    return generator.choice(there if there and generator.random() < 0.5 else anywhere)


Fill = Callable[[Scene, random.Random], list[Filling]]


@dataclass(frozen=True)
class _Template:
    """One type of question: its name, kind of answers, fillings that suit a scene, and words with numbered gaps.

    An ``even`` one is asked only where different fillings have different answers, and the answer is drawn first.
    """

    type: str
    kind: Kind
    even: bool
    fill: Fill
    ways: tuple[str, ...]

    def ask(self, scene: Scene, generator: random.Random) -> Question | None:
        """A question about the scene, or none where this type has nothing to ask."""
        fillings = self.fill(scene, generator)
        answers = sorted({filling[0] for filling in fillings})
        if len(answers) < (2 if self.even else 1):
            return None
        if self.even:
            drawn = generator.choice(answers)
            fillings = [filling for filling in fillings if filling[0] == drawn]
        answer, *words = generator.choice(fillings)
        return Question(generator.choice(self.ways).format(*words), answer, self.kind, self.type)


def _what(attribute: str) -> Fill:
    def fill(scene: Scene, _: random.Random) -> list[Filling]:
        beside = [
            (things[0], f"the thing {ENTAIL[relation]} the {_kind(anchor)}")
            for anchor, relation, things in _beside(scene)
            if len(things) == 1
        ]
        named = [(thing, name) for thing in scene.things for name in _names(scene, thing, attribute)]
        return [(getattr(thing, attribute), name) for thing, name in (*named, *beside)]

    return fill


def _which_corner(scene: Scene, _: random.Random) -> list[Filling]:
    return [(thing.place, name) for thing in scene.things for name in _names(scene, thing, "place")]


def _which_side(scene: Scene, generator: random.Random) -> list[Filling]:
    return [
        (side, name, *order)
        for place, name in _which_corner(scene, generator)
        for side, sides in zip(place.split(), SIDES, strict=True)
        for order in itertools.permutations(sides)
    ]


def _which_is_larger(scene: Scene, _: random.Random) -> list[Filling]:
    return [
        (_kind(one if (one.size == "large") == (word == "larger") else other), word, _kind(one), _kind(other))
        for one, other in itertools.permutations(scene.things, 2)
        for word in ("larger", "smaller")
        if one.size != other.size
    ]


def _what_is_beside(scene: Scene, _: random.Random) -> list[Filling]:
    return [
        (_kind(things[0]), ENTAIL[relation], name)
        for anchor, relation, things in _beside(scene)
        for name in _names(scene, anchor, "place")
        if len(things) == 1
    ]


def _how_many(attribute: str) -> Fill:
    return lambda scene, _: [
        (NUMBERS[count], described({attribute: value}, many=True)) for value, count in _counts(scene, attribute).items()
    ]


def _how_many_at(scene: Scene, _: random.Random) -> list[Filling]:
    counts = {side: sum(side in thing.place.split() for thing in scene.things) for side in (*SIDES[0], *SIDES[1])}
    return [(NUMBERS[count], side) for side, count in counts.items() if count]


def _how_many_beside(scene: Scene, _: random.Random) -> list[Filling]:
    return [
        (NUMBERS[len(things)], ENTAIL[relation], name)
        for anchor, relation, things in _beside(scene)
        for name in _names(scene, anchor, "place")
    ]


def _is_there(scene: Scene, generator: random.Random) -> list[Filling]:
    """By one form for both answers, so that a longer description is not a likelier *no*."""
    form = generator.choice(FORMS)
    found = [("yes", those(thing, form)) for thing in scene.things]
    for thing, what in itertools.product(scene.things, form):
        nearly = {**those(thing, form), what: _wrong(scene, thing, what, generator)}
        if not any(fits(other, nearly) for other in scene.things):
            found.append(("no", nearly))
    return [(answer, with_article(described(wanted))) for answer, wanted in found]


def _is_it(attribute: str) -> Fill:
    def fill(scene: Scene, generator: random.Random) -> list[Filling]:
        found: list[Filling] = []
        for thing in scene.things:
            values = {"yes": getattr(thing, attribute), "no": _wrong(scene, thing, attribute, generator)}
            for name, (answer, value) in itertools.product(_names(scene, thing, attribute), values.items()):
                found.append((answer, name, with_article(value) if attribute == "shape" else value))
        return found

    return fill


def _is_it_beside(scene: Scene, _: random.Random) -> list[Filling]:
    return [
        (answer, one, ENTAIL[said], other)
        for first, relation, second in scene.relations()
        for one in _names(scene, scene.things[first], "place")
        for other in _names(scene, scene.things[second], "place")
        for answer, said in (("yes", relation), ("no", OPPOSITE[relation]))
    ]


def _is_it_larger(scene: Scene, _: random.Random) -> list[Filling]:
    return [
        ("yes" if (first.size == "large") == (word == "larger") else "no", one, word, other)
        for first, second in itertools.permutations(scene.things, 2)
        if first.size != second.size
        for one in _names(scene, first, "size")
        for other in _names(scene, second, "size")
        for word in ("larger", "smaller")
    ]


def _same(attribute: str) -> Fill:
    """Two things of one shape never share their colour, nor the other way round: such a pair would tell the answer."""
    telling = {"colour": "shape", "shape": "colour", "size": "cell"}[attribute]
    return lambda scene, _: [
        ("yes" if getattr(first, attribute) == getattr(second, attribute) else "no", one, other)
        for first, second in itertools.permutations(scene.things, 2)
        if getattr(first, telling) != getattr(second, telling)
        for one in _names(scene, first, attribute)
        for other in _names(scene, second, attribute)
    ]


def _more(scene: Scene, generator: random.Random) -> list[Filling]:
    attribute = generator.choice(LOOKS)
    counts = _counts(scene, attribute)
    words = {value: described({attribute: value}, many=True) for value in counts}
    return [
        ("yes" if counts[one] > counts[other] else "no", words[one], words[other])
        for one, other in itertools.permutations(counts, 2)
        if counts[one] != counts[other]
    ]


_TEMPLATES = (
    _Template("what colour", "other", False, _what("colour"),
              ("what colour is {0}", "which colour is {0}", "what is the colour of {0}", "which colour does {0} have")),
    _Template("what shape", "other", False, _what("shape"),
              ("what shape is {0}", "which shape is {0}", "what is the shape of {0}", "which shape does {0} have")),
    _Template("what size", "other", False, _what("size"),
              ("what size is {0}", "what is the size of {0}", "is {0} small or large", "is {0} large or small")),
    _Template("what background", "other", False, lambda scene, _: [(scene.background,)],
              ("what colour is the background", "which colour is the background", "what is the background colour")),
    _Template("which corner", "other", False, _which_corner,
              ("in which corner is {0}", "which corner is {0} in", "in which corner of the picture is {0}")),
    _Template("which side", "other", False, _which_side,
              ("is {0} at the {1} or at the {2}", "is {0} in the {1} or in the {2} half of the picture")),
    _Template("what is at", "other", False, lambda scene, _: [(_kind(thing), thing.place) for thing in scene.things],
              ("what is at the {0}", "which thing is at the {0}", "what is in the {0} corner")),
    _Template("which is larger", "other", False, _which_is_larger,
              ("which is {0} the {1} or the {2}", "which thing is {0} the {1} or the {2}")),
    _Template("what is beside", "other", False, _what_is_beside,
              ("what is {0} {1}", "which thing is {0} {1}")),
    _Template("how many things", "number", False, lambda scene, _: [(NUMBERS[len(scene.things)],)],
              ("how many things are there", "how many things are in the picture", "what is the number of things")),
    _Template("how many of a size", "number", False, _how_many("size"),
              ("how many {0} are there", "how many {0} are in the picture", "what is the number of {0}")),
    _Template("how many of a colour", "number", True, _how_many("colour"),
              ("how many {0} are there", "how many {0} are in the picture", "what is the number of {0}")),
    _Template("how many of a shape", "number", True, _how_many("shape"),
              ("how many {0} are there", "how many {0} are in the picture", "what is the number of {0}")),
    _Template("how many at", "number", True, _how_many_at,
              ("how many things are at the {0}", "how many of the things are at the {0}")),
    _Template("how many different", "number", True,
              lambda scene, _: [(NUMBERS[len(_counts(scene, what))], plural(what)) for what in ("colour", "shape")],
              ("how many different {0} are there", "how many different {0} do the things have")),
    _Template("how many beside", "number", True, _how_many_beside,
              ("how many things are {0} {1}", "how many of the things are {0} {1}")),
    _Template("is there", "yes/no", True, _is_there,
              ("is there {0}", "is there {0} in the picture", "does the picture show {0}")),
    _Template("is it the colour", "yes/no", True, _is_it("colour"),
              ("is {0} {1}", "is the colour of {0} {1}", "does {0} have the colour {1}")),
    _Template("is it the shape", "yes/no", True, _is_it("shape"), ("is {0} {1}", "is the shape of {0} {1}")),
    _Template("is it the size", "yes/no", True, _is_it("size"), ("is {0} {1}", "is the size of {0} {1}")),
    _Template("is it beside", "yes/no", True, _is_it_beside, ("is {0} {1} {2}", "does the picture show {0} {1} {2}")),
    _Template("is it larger", "yes/no", True, _is_it_larger, ("is {0} {1} than {2}", "is {0} {1} in size than {2}")),
    _Template("same size", "yes/no", True, _same("size"),
              ("is {0} the same size as {1}", "do {0} and {1} have the same size", "are {0} and {1} the same size")),
    _Template("same colour", "yes/no", True, _same("colour"),
              ("is {0} the same colour as {1}", "do {0} and {1} have the same colour")),
    _Template("same shape", "yes/no", True, _same("shape"),
              ("is {0} the same shape as {1}", "do {0} and {1} have the same shape")),
    _Template("is the background", "yes/no", True,
              lambda scene, _: [("yes" if value == scene.background else "no", value) for value in BACKGROUNDS],
              ("is the background {0}", "is the background colour {0}", "does the picture have a {0} background")),
    _Template("exactly", "yes/no", True,
              lambda scene, _: [("yes" if number == len(scene.things) else "no", NUMBERS[number])
                                for number in range(2, MOST_THINGS + 1)],
              ("are there exactly {0} things", "does the picture show exactly {0} things")),
    _Template("more", "yes/no", True, _more,
              ("are there more {0} than {1}", "does the picture show more {0} than {1}")),
    _Template("is anything at", "yes/no", True,
              lambda scene, _: [("yes" if place in {thing.place for thing in scene.things} else "no", place)
                                for place in CELLS],
              ("is there a thing at the {0}", "does the picture show a thing at the {0}")),
)  # fmt: skip

TYPES = tuple(template.type for template in _TEMPLATES)
"""The types of questions, of which each scene is asked most."""
ANSWERS = tuple(sorted({
    "yes", "no", *NUMBERS[1 : MOST_THINGS + 1], *COLOURS, *SHAPES, *SIZES, *BACKGROUNDS, *CELLS, *SIDES[0], *SIDES[1],
    *(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES),
}))  # fmt: skip
"""Every answer that a question may have."""
