"""Accuracy and consistency of true-or-false statements about images.

A statement is shown with several images or pairs of images, some of which make it true and some false. Consistency
is the share of statements that were judged right with all of theirs, so that a lucky guess counts for little.

Source: NLVR (Suhr et al., ACL 2017) and NLVR2 (Suhr et al., ACL 2019, https://arxiv.org/abs/1811.00491), whose scripts
``metrics_images.py`` and ``nlvr2/eval/metrics.py`` (github.com/lil-lab/nlvr) give the same figures as fractions, and
call the accuracy precision.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

NLVR2 = re.compile(r"(\w+)-(\d+)-\d+-(\d+)")
NLVR = re.compile(r"(\d+)-\d+")
NLVR_IMAGE = re.compile(r"\w+-(\d+)-\d+-\d+\.png")


def nlvr_accuracy(predictions: Sequence[bool], labels: Sequence[bool], groups: Sequence[Hashable]) -> dict[str, float]:
    """Accuracy and consistency, in percent.

    Args:
        predictions: Whether the model takes each statement for true.
        labels: Whether it is, in the same order.
        groups: What tells the statements apart, in the same order: examples of one statement share it, see
            :func:`sentence_group`.

    Returns:
        ``accuracy``, percent of examples judged right, and ``consistency``, percent of groups with no wrong one.

    Raises:
        ValueError: If there is no example, or the three are not equally long.

    >>> nlvr_accuracy([True, True, False, True], [True, True, False, False], ["a", "a", "b", "b"])
    {'accuracy': 75.0, 'consistency': 50.0}
    """
    if not len(labels) == len(predictions) == len(groups) or not len(labels):
        raise ValueError(
            f"there are {len(predictions)} predictions, {len(labels)} labels and {len(groups)} groups; "
            f"give one of each for at least 1 example"
        )
    right = [bool(guess) == bool(label) for guess, label in zip(predictions, labels, strict=True)]
    whole = dict.fromkeys(groups, True)
    for group, correct in zip(groups, right, strict=True):
        whole[group] = whole[group] and correct
    return {
        "accuracy": 100.0 * sum(right) / len(right),
        "consistency": 100.0 * sum(whole.values()) / len(whole),
    }


def sentence_group(identifier: str) -> str:
    """What the identifiers of one statement have in common.

    An NLVR2 identifier ``split-set-pair-sentence`` loses its pair. Of an NLVR identifier ``presentation-position`` or
    image name ``split-presentation-position-permutation.png`` the presentation is left.

    Args:
        identifier: As in the annotations; an NLVR image needs its ``.png``, as without it it looks like NLVR2.

    Raises:
        ValueError: If it is neither.

    >>> sentence_group("dev-850-0-1"), sentence_group("1572-0"), sentence_group("dev-1572-0-3.png")
    ('dev-850-1', '1572', '1572')
    """
    if match := NLVR2.fullmatch(identifier):
        return "-".join(match.groups())
    if match := NLVR.fullmatch(identifier) or NLVR_IMAGE.fullmatch(identifier):
        return match.group(1)
    raise ValueError(
        f"identifier {identifier!r} is not one of NLVR2 ('dev-850-0-1') or NLVR ('1572-0', 'dev-1572-0-3.png')"
    )
