"""Refuse settings that are out of range, all in the same words."""

from __future__ import annotations

from collections.abc import Iterable


def at_least(low: int, **values: int) -> None:
    """Refuse numbers that are too small, naming the setting.

    Raises:
        TypeError: If one of them is no whole number; ``null`` in a recipe gets this far.
        ValueError: If one of them is below ``low``.

    >>> at_least(1, batch_size=0)
    Traceback (most recent call last):
    ValueError: batch_size is 0; set it to 1 or more
    """
    for name, value in values.items():
        if not isinstance(value, int):
            raise TypeError(f"{name} is {value!r}; set it to a whole number of {low} or more")
        if value < low:
            raise ValueError(f"{name} is {value!r}; set it to {low} or more")


def one_of(known: Iterable[str], **choices: str) -> None:
    """Refuse a choice that does not exist, naming the setting.

    Raises:
        ValueError: If one of them is not ``known``.

    >>> one_of(["light", "none"], augment="heavy")
    Traceback (most recent call last):
    ValueError: augment is 'heavy'; expected one of ['light', 'none']
    """
    known = sorted(known)
    for name, choice in choices.items():
        if choice not in known:
            raise ValueError(f"{name} is {choice!r}; expected one of {known}")
