"""How far a search has come, in numbers to log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from upop.cost import Share
from upop.structure import Currency


def removed_fractions(shares: Sequence[Share]) -> dict[str, float]:
    """Fractions of the prunable cost that are selected, as ``removed/params``, ``removed/params/vision/neuron``, ...

    In every currency that the shares are in, in all, per modality and per modality and kind; 0 where there is nothing
    to remove.

    Args:
        shares: What each modality and kind holds and loses.
    """
    found = {}
    for currency in get_args(Currency):
        rows = [(share, getattr(share, currency), getattr(share, f"{currency}_removed")) for share in shares]
        if any(whole is None for _, whole, _ in rows):
            continue
        found[f"removed/{currency}"] = _fraction([row[1:] for row in rows])
        for modality in dict.fromkeys(share.modality for share in shares):
            mine = [row for row in rows if row[0].modality == modality]
            name = f"removed/{currency}/{modality}"
            found[name] = _fraction([row[1:] for row in mine])
            found |= {f"{name}/{row[0].kind.replace(' x ', '+')}": _fraction([row[1:]]) for row in mine}
    return found


def _fraction(rows: Sequence[tuple[int, int]]) -> float:
    """Sum of what goes over the sum of what there is."""
    whole = sum(row[0] for row in rows)
    return sum(row[1] for row in rows) / whole if whole else 0.0
