"""Topics: what a picture shows, nearly shows or does not decide, by hand on pictures of two things."""

from upop.data.scenes import Scene, Thing
from upop.data.topics import CLAIMS, COUNTED, SIGHTS, Topic, attribute_of

RED_CIRCLE = Thing(0, "circle", "red", "small")
BLUE_CIRCLE = Thing(3, "circle", "blue", "large")
BLUE_STAR = Thing(2, "star", "blue", "large")


def measures(lists: tuple[list[Topic], ...], scene: Scene) -> dict[str, object]:
    return {topic.words: topic.measure(scene) for like in lists for topic in like}


def test_what_is_seen_counts_whole_nearly_or_not_at_all() -> None:
    found = measures(SIGHTS, Scene((RED_CIRCLE, BLUE_STAR), "black"))
    assert found["a red circle"] == found["a star"] == found["a black background"] == 1.0
    assert found["exactly two things"] == 1.0
    assert found["a red star"] == 0.5, "red is there, and a star"
    assert found["a green square"] == found["only small things"] == found["a white background"] == 0.0


def test_a_claim_about_one_of_two_alike_is_undecided() -> None:
    clear = measures(CLAIMS, Scene((RED_CIRCLE, BLUE_STAR), "black"))
    assert clear["the circle is red"] == 1.0
    assert clear["the circle is blue"] == 0.0
    twice = measures(CLAIMS, Scene((RED_CIRCLE, BLUE_CIRCLE), "black"))
    assert twice["the circle is red"] is None
    assert twice["the star is red"] is None, "there is none"


def test_things_are_counted_by_what_they_are_called() -> None:
    found = measures(COUNTED, Scene((RED_CIRCLE, BLUE_CIRCLE), "black"))
    assert found["things"] == found["circles"] == 2
    assert found["red things"] == 1
    assert found["stars"] == 0


def test_an_attribute_is_that_of_the_one_thing_meant() -> None:
    topic = attribute_of({"colour": "blue"}, "size")
    assert topic.words == "the blue thing"
    assert topic.measure(Scene((RED_CIRCLE, BLUE_STAR), "black")) == "large"
    assert topic.measure(Scene((BLUE_CIRCLE, BLUE_STAR), "black")) is None
