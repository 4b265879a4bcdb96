"""Ways in which files go wrong, as strategies of Hypothesis, and what may come of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from hypothesis import strategies as st

Result = TypeVar("Result")

SHOWN = (ValueError, TypeError, OSError)
"""What the command line shows as one line."""
ODD = (
    None, True, False, 0, -1, 1, 3, 1.5, 1e308, 10**6, 2**31, 2**63, 10**30, 10**400, float("nan"), float("inf"),
    "", " ", "0", "-", "x", "a" * 3000, "\0", "\ud800", "\u202e", "../x", "/etc/passwd", "1-0", "0-99999999999",
    [], [[]], [None], ["x"], [1, -1], {}, {"x": 1}, {"": {}}, {"format": 2},
)  # fmt: skip
"""Values that nobody expects in JSON."""
SNIPPETS = (
    b"\0",
    b"\xff",
    b"{",
    b"]",
    b'"',
    b"\n",
    b"%",
    b"!!",
    b"- ",
    b": ",
    b"&a *a",
    b"\x80\x04",
    b"1e999",
    b"'" * 3,
)


def places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a value, with each of its keys."""
    for key in list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ():
        yield content, key
        yield from places(content[key])


@st.composite
def edited(draw: st.DrawFn, content: Any) -> Any:
    """A copy of what JSON or YAML holds, with an edit or two."""
    found = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 2))):
        there = list(places(found))
        if not there:
            return draw(st.sampled_from(ODD))
        inside, key = there[draw(st.integers(0, len(there) - 1))]
        edit = draw(st.sampled_from(("replace", "replace", "remove", "repeat", "swap", "rename")))
        if edit == "remove":
            del inside[key]
        elif edit == "repeat" and isinstance(inside, list):
            inside.append(copy.deepcopy(inside[key]))
        elif edit == "rename" and isinstance(inside, dict):
            inside[draw(st.sampled_from(("x", "", "format", f"{key}x")))] = inside.pop(key)
        elif edit == "swap":
            other, place = there[draw(st.integers(0, len(there) - 1))]
            inside[key] = copy.deepcopy(other[place])
        else:
            inside[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
    return found


@st.composite
def spoilt(draw: st.DrawFn, content: bytes, most: int | None = None) -> bytes:
    """A copy of a file that is cut off, flipped, or has something in it; in the first ``most`` bytes."""
    place = draw(st.integers(0, min(most or len(content), len(content)) - 1))
    edit = draw(st.sampled_from(("cut", "flip", "flip", "put", "insert", "zero", "drop")))
    if edit == "cut":
        return content[:place]
    if edit == "flip":
        return content[:place] + bytes([content[place] ^ (1 << draw(st.integers(0, 7)))]) + content[place + 1 :]
    if edit == "put":
        return content[:place] + bytes([draw(st.integers(0, 255))]) + content[place + 1 :]
    if edit == "insert":
        return content[:place] + draw(st.sampled_from(SNIPPETS)) + content[place:]
    size = draw(st.integers(1, 64))
    return content[:place] + (b"\0" * size if edit == "zero" else b"") + content[place + size :]


def survived(action: Callable[[], Result], *names: str) -> Result | None:
    """The result of an action, or None where it ended with an error that a user understands.

    Args:
        action: What to do.
        names: The message has to hold one of these: the file, or what else it is about.
    """
    try:
        return action()
    except SHOWN as error:
        told, exact = str(error), type(error)
    assert not issubclass(exact, UnicodeError | ArithmeticError), f"{exact.__name__}: {told}"
    assert told.strip(), f"a {exact.__name__} without a message"
    assert any(name in told for name in names), f"{exact.__name__} does not say what it is about: {told}"
    return None
