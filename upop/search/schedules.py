"""How fast units go: the share of the target that is removed after each update of the search.

Source: UPop, Shi et al., ICML 2023, https://arxiv.org/abs/2301.13741 (``sine``); Zhu & Gupta, "To prune, or not to
prune", 2017, https://arxiv.org/abs/1710.01878 (``cubic``).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

from upop.messages import closest

Schedule = Literal["sine", "cubic", "one_shot"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)


def fraction(schedule: str, step: int, steps: int) -> float:
    """Share of the target that is removed after the update at optimizer step ``step``, from 0 to exactly 1.

    With ``t = step`` and ``T = steps``: ``sine`` is ``sqrt((1 - cos(pi (t + 1) / T)) / 2)``, computed as the equal
    ``sin(pi (t + 1) / (2 T))``; ``cubic`` is ``1 - (1 - (t + 1) / T) ** 3``; ``one_shot`` is 0 until the last step, so
    that scores are collected on the whole model and everything goes at once. Every schedule is 1 at the last step.

    Args:
        schedule: ``sine`` (the paper's), ``cubic`` or ``one_shot``.
        step: Optimizer step in the search, from 0.
        steps: Optimizer steps of the whole search.

    Raises:
        ValueError: If there is no such schedule, or ``step`` is not one of ``steps``.

    >>> [round(fraction("sine", step, 4), 3) for step in range(4)]
    [0.383, 0.707, 0.924, 1.0]
    """
    if schedule not in SCHEDULES:
        raise ValueError(
            f"search.schedule is {schedule!r}; choose one of {sorted(SCHEDULES)}{closest(str(schedule), SCHEDULES)}"
        )
    if not 0 <= step < steps:
        raise ValueError(f"step is {step!r} of {steps!r} search steps; steps count from 0 to steps - 1")
    if step == steps - 1:
        return 1.0
    done = (step + 1) / steps
    if schedule == "sine":
        return math.sin(math.pi * done / 2)
    return 1 - (1 - done) ** 3 if schedule == "cubic" else 0.0
