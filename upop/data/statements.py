"""Say something about two pictures that is true or false, as in NLVR2 (Suhr et al., ACL 2019, arXiv:1811.00491).

Most sentences need both pictures; only "the left picture shows" and the like can be judged from one. What the pictures
do not decide is not said of them: "the circle" is one thing in each picture that it is said of, and nothing is said to
lie above or below a thing of its own row.

Who sees only the sentence cannot know its truth: :func:`pairs` finds as many pairs of scenes that make a sentence true
as pairs that make it false, and :func:`statements` takes a sentence from like ones of which some are true and some
false. Most false sentences would be true, and most true ones false, were it for one of the two pictures.

The *verdict* of a sentence goes from the measures of both pictures (see :mod:`upop.data.topics`) to true or false.
"""

from __future__ import annotations

import hashlib
import itertools
import operator
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from upop.data.captions import NUMBERS
from upop.data.questions import VALUES
from upop.data.scenes import BACKGROUNDS, Scene
from upop.data.topics import CLAIMS, COUNTED, SIGHTS, Topic, attribute_of, one_and_other, things_by
from upop.messages import closest

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


def pairs(scenes: Sequence[Scene], count: int, seed: int = 0, types: Sequence[str] = ()) -> list[Pair]:
    """Sentences, and for each some pairs of scenes of which half make it true.

    The first pairs of a longer list are the shorter list. A sentence comes more than once only in a list of
    more than about 20,000 pairs; it gets other pairs then, and keeps its group.

    Args:
        scenes: Different scenes to take the pairs from, at least two.
        count: Number of pairs; the last sentence has fewer if this is no multiple of :data:`PAIRS_PER_SENTENCE`.
        seed: Which sentences are drawn, and which pairs.
        types: Types of sentences to draw from, of :data:`TYPES`; empty for all.

    Raises:
        ValueError: If ``count`` is below 1, a type is unknown, or the scenes are too few for that many pairs.
    """
    if count < 1:
        raise ValueError(f"{count} pairs asked for; ask for at least 1")
    check_types(types)
    generator = random.Random(f"pairs {seed}")
    drawn_from = [_FAMILIES[name] for name in TYPES if name in types or not types]
    groups: dict[str, int] = {}
    drawn: Counter[str] = Counter()
    found: dict[Pair, None] = {}
    failures = 0
    while len(found) < count:
        family = generator.choice(generator.choice(drawn_from))
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


def check_types(types: Sequence[str]) -> None:
    """Refuse types of sentences that are none of :data:`TYPES`.

    Raises:
        ValueError: With those that there are.
    """
    for name in types:
        if name not in TYPES:
            near = closest(str(name), TYPES)
            raise ValueError(f"statements of type {name!r} asked for; there are {list(TYPES)}{near}")


def vocabulary() -> tuple[str, ...]:
    """Every word that a statement may use, sorted."""
    families = list(itertools.chain(*_FAMILIES.values()))
    ways = (way for family in families for way in family.ways)
    topics = (topic.words for family in families for topic in family.topics)
    return tuple(sorted({word for phrase in (*ways, *topics) for word in phrase.split()} - {"..."}))


@dataclass(frozen=True)
class _Family:
    """Sentences, with ``...`` for their topic, of which no topic makes one likelier to be true than another."""

    ways: tuple[str, ...]
    topics: Sequence[Topic]
    verdict: Verdict

    def say(self, left: Scene, right: Scene, generator: random.Random) -> Statement | None:
        """One of the sentences, if some are true of the two scenes and some false."""
        topics: dict[Measures, list[Topic]] = {}
        for topic in self.topics:
            topics.setdefault((topic.measure(left), topic.measure(right)), []).append(topic)
        drawn = self._draw(topics, 1, generator)
        if not drawn:
            return None
        measures, label = drawn[0]
        text = generator.choice(self.ways).replace("...", generator.choice(topics[measures]).words)
        return Statement(text, label, int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big"))

    def find(self, topic: Topic, scenes: Sequence[Scene], generator: random.Random) -> list[tuple[int, int, bool]]:
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


_TOTALS = ((4, 5, 6), (2, 3, 4), (2, 3), (2, 3))
"""For each of these lists, how many a sentence may count in the two pictures together."""
_NUMBERS = (*NUMBERS, "four", "five", "six")

_Like = tuple[str, Verdict, Iterable[Sequence[Topic]], tuple[str, ...]]
"""Sentences: their type, verdict, lists of like topics, and words."""


def _judged() -> Iterator[_Like]:
    """In which of the pictures something is so."""
    for topics, one, two in ((SIGHTS, "{} shows ...", "{} show ..."), (CLAIMS, "in {} ...", "in {} ...")):
        yield "both", lambda a, b: a == b == 1, topics, (two.format("both pictures"), one.format("each picture"))
        ways = one.format("exactly one of the pictures"), one.format("exactly one picture")
        yield "one", lambda a, b: (a == 1) != (b == 1), topics, ways
        ways = one.format("at least one of the pictures"), one.format("at least one picture")
        yield "any", lambda a, b: a == 1 or b == 1, topics, ways
        yield from _of_either("left or right", lambda a, _: a == 1, topics, one.format("the {} picture"))
    yield "none", lambda a, b: a != 1 != b, SIGHTS, ("neither picture shows ...", "no picture shows ...")
    ways = "only the {} picture shows ...", "the {} picture shows ... and the {} one does not"
    yield from _of_either("only", lambda a, b: a == 1 != b, SIGHTS, *ways)


def _compared() -> Iterator[_Like]:
    """How the pictures differ, and what they hold together."""
    for word, verdict in (("more", operator.gt), ("fewer", operator.lt)):
        ways = (
            f"the {{}} picture shows {word} ... than the {{}} one",
            f"there are {word} ... in the {{}} picture than in the {{}} one",
        )
        yield from _of_either("more", verdict, COUNTED, *ways)
    ways = "both pictures show the same number of ...", "there are as many ... in the left picture as in the right one"
    yield "as many", operator.eq, COUNTED, ways
    for like, totals in zip(COUNTED, _TOTALS, strict=True):
        for total, (words, compare) in itertools.product(totals, (("exactly", operator.eq), ("at least", operator.ge))):
            there = f"{words} {_NUMBERS[total]} ... in all"
            ways = f"there are {there}", f"the pictures show {there}"
            yield words, partial(_sums, compare, total), [like], ways
    for what in VALUES:
        topics = [[attribute_of(wanted, what) for wanted in things_by(by)] for by in ("colour", "shape") if by != what]
        if what == "colour":
            topics.append([Topic("the background", lambda scene: scene.background)])
        yield "same", operator.eq, topics, (f"... has the same {what} in both pictures",)
        yield "same", operator.ne, topics, (f"... has a different {what} in each picture",)
    two = [[one_and_other(*pair) for pair in itertools.permutations(BACKGROUNDS, 2)]]
    ways = "one picture has ...", "one picture shows ..."
    yield "one and other", lambda a, b: {a, b} == {"first", "second"}, two, ways


def _of_either(name: str, verdict: Verdict, topics: Iterable[Sequence[Topic]], *ways: str) -> Iterator[_Like]:
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
TYPES = tuple(_FAMILIES)
"""Types of statements, by what is said of the two pictures."""
