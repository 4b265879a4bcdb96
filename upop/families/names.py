"""Names of weights in another library's spelling: beginnings of paths, and parts of the blocks behind them."""

from __future__ import annotations

Pairs = tuple[tuple[str, str], ...]
"""Names as they are and as they become."""


def turned(pairs: Pairs) -> Pairs:
    """The pairs for the way back.

    >>> turned((("a", "b"),))
    (('b', 'a'),)
    """
    return tuple((new, old) for old, new in pairs)


def renamed(name: str, beginnings: Pairs, inside: Pairs = ()) -> str:
    """``name`` with the first of ``beginnings`` that fits replaced, and then the parts ``inside``; else as it is.

    >>> renamed("visual.blocks.0.fc", (("visual.", "vision."),), ((".fc", ".dense"),))
    'vision.blocks.0.dense'
    >>> renamed("text.blocks.0.fc", (("visual.", "vision."),), ((".fc", ".dense"),))
    'text.blocks.0.fc'
    """
    for old, new in beginnings:
        if name.startswith(old):
            name = new + name.removeprefix(old)
            for part, other in inside:
                name = name.replace(part, other)
            break
    return name
