"""Say something about two pictures that is true or false, as in NLVR2 (Suhr et al., ACL 2019, arXiv:1811.00491).

Most sentences need both pictures; only "the left picture shows" and the like can be judged from one. What the pictures
do not decide is not said of them: "the circle" is one thing in each picture that it is said of, and nothing is said to
lie above or below a thing of its own row.

Who sees only the sentence cannot know its truth: :func:`pairs` finds as many pairs of scenes that make a sentence true
as pairs that make it false, and :func:`statements` takes a sentence from like ones of which some are true and some
false. Most false sentences would be true, and most true ones false, were it for one of the two pictures.

In this module the *measure* of a topic is what of one picture matters to a sentence, and the *verdict* goes from the
measures of both pictures to true or false. A measure is None where its picture does not decide; that of something to
be seen is 1.0 where it is there, 0.5 where it nearly is, and 0.0 elsewhere.
"""

from __future__ import annotations

import hashlib
import itertools
import operator
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from upop.data.captions import ENTAIL, NUMBERS
from upop.data.questions import FORMS, OPPOSITE, VALUES, described, fits, with_article
from upop.data.scenes import BACKGROUNDS, SHAPES, SIZES, Relation, Scene, Thing

PAIRS_PER_SENTENCE = 4
"""Pairs that :func:`pairs` finds for a sentence at a time: half true, half false."""
SCENES_SEARCHED = 256
"""Scenes among which they are sought."""
FAILURES_BEFORE_AGAIN = 100
"""Sentences in a row without new pairs after which one may be drawn that has pairs: as good as all have been drawn."""
MOST_FAILURES = 1000
"""Sentences in a row without new pairs after which :func:`pairs` gives up."""
NEAR = 3
"""How much likelier a pair is taken if another picture on one of its sides can change the truth."""

Measure = Callable[[Scene], Any]
Verdict = Callable[[Any, Any], bool]
Measures = tuple[Any, Any]
"""Measures of the left picture and of the right one."""


@dataclass(frozen=True)
class Statement:
    """A sentence about two pictures.

    Attributes:
        text: In lower case and without punctuation.
        label: Whether it is true.
        group: A number that equal sentences share.
    """

    text: str
    label: bool
    group: int


class Pair(NamedTuple):
    """The numbers of two scenes, a sentence about them, whether it is true, and the number of the sentence."""

    left: int
    right: int
    sentence: str
    label: bool
    group: int


def statements(left: Scene, right: Scene, seed: int = 0) -> tuple[Statement, ...]:
    """Sentences about two scenes, one of each type that can be said of them, in random order.

    Args:
        left: What the left picture shows.
        right: What the right picture shows.
        seed: Which sentences are said, in which words and order.
    """
    generator = random.Random(f"statements {left.digest} {right.digest} {seed}")
    found: list[Statement] = []
    for families in _FAMILIES.values():
        tried = (family.say(left, right, generator) for family in generator.sample(families, len(families)))
        found.extend(itertools.islice(filter(None, tried), 1))
    generator.shuffle(found)
    return tuple(found)


def pairs(scenes: Sequence[Scene], count: int, seed: int = 0) -> list[Pair]:
    """Sentences, and for each some pairs of scenes of which half make it true.

    The first pairs of a longer list are the shorter list. A sentence comes more than once only in a list of
    more than about 20,000 pairs; it gets other pairs then, and keeps its group.

    Args:
        scenes: Different scenes to take the pairs from, at least two.
        count: Number of pairs; the last sentence has fewer if this is no multiple of :data:`PAIRS_PER_SENTENCE`.
        seed: Which sentences are drawn, and which pairs.

    Raises:
        ValueError: If ``count`` is below 1, or the scenes are too few for that many pairs.
    """
    if count < 1:
        raise ValueError(f"{count} pairs asked for; ask for at least 1")
    generator = random.Random(f"pairs {seed}")
    types = list(_FAMILIES.values())
    groups: dict[str, int] = {}
    drawn: Counter[str] = Counter()
    found: dict[Pair, None] = {}
    failures = 0
    while len(found) < count:
        family = generator.choice(generator.choice(types))
        topic = generator.choice(family.topics)
        sentence = generator.choice(family.ways).replace("...", topic.words)
        some: dict[Pair, None] = {}
        if drawn[sentence] <= failures // FAILURES_BEFORE_AGAIN:
            group = groups.get(sentence, len(groups))
            able = family.find(topic, scenes, generator)
            some = dict.fromkeys(Pair(left, right, sentence, label, group) for left, right, label in able)
        if len(some) == PAIRS_PER_SENTENCE and found.keys().isdisjoint(some):
            found |= some
            groups.setdefault(sentence, len(groups))
            drawn[sentence] += 1
            failures = 0
        elif (failures := failures + 1) == MOST_FAILURES:
            raise ValueError(
                f"{count} pairs asked for, but {len(scenes)} scenes hold hardly more than {len(found)}; "
                "ask for fewer pairs or give more scenes"
            )
    return list(found)[:count]


def vocabulary() -> tuple[str, ...]:
    """Every word that a statement may use, sorted."""
    families = list(itertools.chain(*_FAMILIES.values()))
    ways = (way for family in families for way in family.ways)
    topics = (topic.words for family in families for topic in family.topics)
    return tuple(sorted({word for phrase in (*ways, *topics) for word in phrase.split()} - {"..."}))


@dataclass(frozen=True)
class _Topic:
    """What a sentence is about: in words, and as what of a picture matters to it."""

    words: str
    measure: Measure


@dataclass(frozen=True)
class _Family:
    """Sentences, with ``...`` for their topic, of which no topic makes one likelier to be true than another."""

    ways: tuple[str, ...]
    topics: Sequence[_Topic]
    verdict: Verdict

    def say(self, left: Scene, right: Scene, generator: random.Random) -> Statement | None:
        """One of the sentences, if some are true of the two scenes and some false."""
        topics: dict[Measures, list[_Topic]] = {}
        for topic in self.topics:
            topics.setdefault((topic.measure(left), topic.measure(right)), []).append(topic)
        drawn = self._draw(topics, 1, generator)
        if not drawn:
            return None
        measures, label = drawn[0]
        text = generator.choice(self.ways).replace("...", generator.choice(topics[measures]).words)
        return Statement(text, label, int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big"))

    def find(self, topic: _Topic, scenes: Sequence[Scene], generator: random.Random) -> list[tuple[int, int, bool]]:
        """Numbers of two scenes and the truth of the sentence on the topic, half of them true; or nothing."""
        numbers: dict[Any, list[int]] = {}
        for number in generator.sample(range(len(scenes)), min(len(scenes), SCENES_SEARCHED)):
            numbers.setdefault(topic.measure(scenes[number]), []).append(number)
        able = ((a, b) for a in numbers for b in numbers if a != b or len(numbers[a]) > 1)
        found = []
        for (a, b), label in self._draw(able, PAIRS_PER_SENTENCE // 2, generator):
            left = generator.choice(numbers[a])
            found.append((left, generator.choice([number for number in numbers[b] if number != left]), label))
        return found

    def _draw(self, measures: Iterable[Measures], each: int, generator: random.Random) -> list[tuple[Measures, bool]]:
        """Some of the measures, ``each`` of either label, shuffled; nothing where all have one label.

        Both pictures must decide even where the sentence is about one: then it matters which picture is meant.
        """
        labels = {both: self.verdict(*both) for both in measures if None not in both}
        if len(set(labels.values())) < 2:
            return []
        drawn = []
        for wanted in (True, False):
            able = [both for both, label in labels.items() if label == wanted]
            others = [both for both, label in labels.items() if label != wanted]
            weights = [NEAR if any(a == c or b == d for c, d in others) else 1 for a, b in able]
            drawn += [(both, wanted) for both in generator.choices(able, weights, k=each)]
        return generator.sample(drawn, len(drawn))


def _wanted(*form: str) -> list[dict[str, str]]:
    return [dict(zip(form, values, strict=True)) for values in itertools.product(*(VALUES[what] for what in form))]


def _seen(wanted: Mapping[str, str]) -> _Topic:
    """A thing with these attributes; nearly, where one of them is there."""

    def measure(scene: Scene) -> float:
        if any(fits(thing, wanted) for thing in scene.things):
            return 1.0
        return 0.5 if any(fits(thing, {what: wanted[what]}) for thing in scene.things for what in wanted) else 0.0

    return _Topic(with_article(described(wanted)), measure)


def _seen_beside(attribute: str, first: str, relation: Relation, second: str) -> _Topic:
    """A thing beside another; nearly, where it is on the other side. Undecided where two of them are level."""

    def measure(scene: Scene) -> float | None:
        found = [
            _is_beside(scene, one, relation, other)
            for one, other in itertools.permutations(scene.things, 2)
            if getattr(one, attribute) == first and getattr(other, attribute) == second
        ]
        return None if None in found else max(filter(None, found), default=0.0)

    one, other = (with_article(described({attribute: value})) for value in (first, second))
    return _Topic(f"{one} {ENTAIL[relation]} {other}", measure)


def _is_beside(scene: Scene, one: Thing, relation: Relation, other: Thing) -> float | None:
    """1.0 where the relation holds, 0.5 where the opposite does, and None between."""
    pair = scene.things.index(one), scene.things.index(other)
    found = [said for first, said, second in scene.relations() if (first, second) == pair]
    return 1.0 if relation in found else 0.5 if OPPOSITE[relation] in found else None


def _whole(words: str, what: Callable[[Scene], object], wanted: object) -> _Topic:
    """Something about a picture as a whole."""
    return _Topic(words, lambda scene: float(what(scene) == wanted))


def _only(scene: Scene, wanted: Mapping[str, str]) -> Thing | None:
    """The one thing with these attributes, None where it is not one."""
    found = [thing for thing in scene.things if fits(thing, wanted)]
    return found[0] if len(found) == 1 else None


def _attribute(wanted: Mapping[str, str], attribute: str) -> _Topic:
    """An attribute of the one thing that is meant."""
    return _Topic(f"the {described(wanted)}", lambda scene: getattr(_only(scene, wanted), attribute, None))


def _claim(wanted: Mapping[str, str], attribute: str, value: str) -> _Topic:
    """That the one thing that is meant has an attribute."""
    subject = _attribute(wanted, attribute)
    words = {"shape": with_article(value), "place": f"at the {value}"}.get(attribute, value)

    def measure(scene: Scene) -> float | None:
        own = subject.measure(scene)
        return None if own is None else float(own == value)

    return _Topic(f"{subject.words} is {words}", measure)


def _claim_beside(first: str, relation: Relation, second: str) -> _Topic:
    """That one thing lies so towards another, both named by their shapes."""

    def measure(scene: Scene) -> float | None:
        one, other = _only(scene, {"shape": first}), _only(scene, {"shape": second})
        return None if one is None or other is None else _is_beside(scene, one, relation, other)

    return _Topic(f"the {first} is {ENTAIL[relation]} the {second}", measure)


def _number(wanted: Mapping[str, str]) -> _Topic:
    """How many things have these attributes."""
    return _Topic(described(wanted, many=True), lambda scene: sum(fits(thing, wanted) for thing in scene.things))


def _one_and_other(first: str, second: str) -> _Topic:
    words = f"a {first} background and the other one a {second} background"
    return _Topic(words, lambda scene: {first: "first", second: "second"}.get(scene.background, "neither"))


_SIGHTS = (
    *([_seen(wanted) for wanted in _wanted(*form)]
      for form in (*FORMS, ("place",), ("colour", "place"), ("shape", "place"))),
    *([_seen_beside(what, first, relation, second)
       for first, second in itertools.permutations(VALUES[what], 2) for relation in OPPOSITE]
      for what in ("colour", "shape")),
    [_whole(f"a {colour} background", lambda scene: scene.background, colour) for colour in BACKGROUNDS],
    [_whole(f"exactly {NUMBERS[number]} things", lambda scene: len(scene.things), number) for number in (2, 3)],
    [_whole(f"only {size} things", lambda scene: {thing.size for thing in scene.things}, {size}) for size in SIZES],
)  # fmt: skip
"""What a picture may show, in lists of like topics."""

_CLAIMS = (
    [_claim_beside(first, relation, second)
     for first, second in itertools.permutations(SHAPES, 2) for relation in OPPOSITE],
    *([_claim(wanted, what, value) for wanted in _wanted(named) for value in VALUES[what]]
      for named in ("colour", "shape") for what in VALUES if what != named),
)  # fmt: skip
"""What may hold in a picture, in lists of like topics."""

_COUNTED = tuple([_number(wanted) for wanted in _wanted(*form)] for form in ((), ("size",), ("colour",), ("shape",)))
"""What may be counted, in lists of like topics."""

_TOTALS = ((4, 5, 6), (2, 3, 4), (2, 3), (2, 3))
"""For each of these lists, how many a sentence may count in the two pictures together."""
_NUMBERS = (*NUMBERS, "four", "five", "six")

_Like = tuple[str, Verdict, Iterable[Sequence[_Topic]], tuple[str, ...]]
"""Sentences: their type, verdict, lists of like topics, and words."""


def _judged() -> Iterator[_Like]:
    """In which of the pictures something is so."""
    for topics, one, two in ((_SIGHTS, "{} shows ...", "{} show ..."), (_CLAIMS, "in {} ...", "in {} ...")):
        yield "both", lambda a, b: a == b == 1, topics, (two.format("both pictures"), one.format("each picture"))
        ways = one.format("exactly one of the pictures"), one.format("exactly one picture")
        yield "one", lambda a, b: (a == 1) != (b == 1), topics, ways
        ways = one.format("at least one of the pictures"), one.format("at least one picture")
        yield "any", lambda a, b: a == 1 or b == 1, topics, ways
        yield from _of_either("left or right", lambda a, _: a == 1, topics, one.format("the {} picture"))
    yield "none", lambda a, b: a != 1 != b, _SIGHTS, ("neither picture shows ...", "no picture shows ...")
    ways = "only the {} picture shows ...", "the {} picture shows ... and the {} one does not"
    yield from _of_either("only", lambda a, b: a == 1 != b, _SIGHTS, *ways)


def _compared() -> Iterator[_Like]:
    """How the pictures differ, and what they hold together."""
    for word, verdict in (("more", operator.gt), ("fewer", operator.lt)):
        ways = (
            f"the {{}} picture shows {word} ... than the {{}} one",
            f"there are {word} ... in the {{}} picture than in the {{}} one",
        )
        yield from _of_either("more", verdict, _COUNTED, *ways)
    ways = "both pictures show the same number of ...", "there are as many ... in the left picture as in the right one"
    yield "as many", operator.eq, _COUNTED, ways
    for like, totals in zip(_COUNTED, _TOTALS, strict=True):
        for total, (words, compare) in itertools.product(totals, (("exactly", operator.eq), ("at least", operator.ge))):
            there = f"{words} {_NUMBERS[total]} ... in all"
            ways = f"there are {there}", f"the pictures show {there}"
            yield words, partial(_sums, compare, total), [like], ways
    for what in VALUES:
        topics = [[_attribute(wanted, what) for wanted in _wanted(by)] for by in ("colour", "shape") if by != what]
        if what == "colour":
            topics.append([_Topic("the background", lambda scene: scene.background)])
        yield "same", operator.eq, topics, (f"... has the same {what} in both pictures",)
        yield "same", operator.ne, topics, (f"... has a different {what} in each picture",)
    two = [[_one_and_other(*pair) for pair in itertools.permutations(BACKGROUNDS, 2)]]
    ways = "one picture has ...", "one picture shows ..."
    yield "one and other", lambda a, b: {a, b} == {"first", "second"}, two, ways


def _of_either(name: str, verdict: Verdict, topics: Iterable[Sequence[_Topic]], *ways: str) -> Iterator[_Like]:
    """The same said of either picture, with gaps for it and for the other one."""
    yield name, verdict, topics, tuple(way.format("left", "right") for way in ways)
    yield name, lambda a, b: verdict(b, a), topics, tuple(way.format("right", "left") for way in ways)


def _sums(compare: Verdict, total: int, left: int, right: int) -> bool:
    return compare(left + right, total)


_LIKE = (*_judged(), *_compared())
_FAMILIES = {
    name: [_Family(ways, like, verdict) for other, verdict, lists, ways in _LIKE if other == name for like in lists]
    for name, *_ in _LIKE
}
"""All that can be said, by type."""
