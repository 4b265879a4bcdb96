"""Settings that are out of range are named with what is allowed."""

import pytest

from upop.data.settings import at_least, one_of


def test_what_is_in_range_passes():
    at_least(1, folds=1, batch_size=7)
    one_of(("b", "a"), first="a", second="b")


def test_what_is_no_number_is_named():
    with pytest.raises(TypeError, match="batch_size is None; set it to a whole number of 1 or more"):
        at_least(1, batch_size=None)


def test_each_setting_is_looked_at():
    with pytest.raises(ValueError, match="folds is 0; set it to 1 or more"):
        at_least(1, batch_size=1, folds=0)
    with pytest.raises(ValueError, match=r"second is 'c'; expected one of \['a', 'b'\]"):
        one_of(("b", "a"), first="a", second="c")
