"""Parts of error messages."""

from upop.messages import closest, some
from upop.structure import KINDS


def test_closest_names_what_is_near_and_nothing_else():
    assert closest("neurons", KINDS) == "; did you mean 'neuron'?"
    assert closest("zzz", KINDS) == ""
    assert closest("head-dim", iter(KINDS)) == "; did you mean 'head_dim'?"


def test_some_counts_what_it_leaves_out():
    assert some(["a", "b", "c"]) == "['a', 'b', 'c']"
    assert some(["a", "b", "c", "d"]) == "['a', 'b', 'c', ...] (4)"
    assert some(iter([])) == "[]"
