import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upop.search.schedules import SCHEDULES, fraction


@given(st.sampled_from(SCHEDULES), st.integers(1, 5000))
def test_rises_from_above_zero_to_exactly_one(schedule, steps):
    some = sorted({0, steps // 3, steps // 2, steps - 1})
    shares = [fraction(schedule, step, steps) for step in some]
    assert shares == sorted(shares)
    assert shares[0] >= 0
    assert shares[-1] == 1.0


@given(st.integers(2, 1000), st.data())
def test_sine_is_the_formula_of_the_paper(steps, data):
    step = data.draw(st.integers(0, steps - 1))
    assert fraction("sine", step, steps) == pytest.approx(
        math.sqrt((1 - math.cos(math.pi * (step + 1) / steps)) / 2), abs=1e-9
    )


def test_cubic_and_one_shot_by_hand():
    assert [fraction("cubic", step, 4) for step in range(4)] == [1 - 27 / 64, 1 - 8 / 64, 1 - 1 / 64, 1.0]
    assert [fraction("one_shot", step, 4) for step in range(4)] == [0.0, 0.0, 0.0, 1.0]
    assert fraction("one_shot", 0, 1) == 1.0


def test_messages():
    with pytest.raises(
        ValueError, match=r"search\.schedule is 'cosine'; choose one of \['cubic', 'one_shot', 'sine'\]; did"
    ):
        fraction("cosine", 0, 1)
    for step, steps in [(-1, 5), (5, 5), (0, 0)]:
        with pytest.raises(ValueError, match=f"step is {step} of {steps} search steps"):
            fraction("sine", step, steps)
