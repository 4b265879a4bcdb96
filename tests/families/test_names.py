"""Renaming there and back."""

import pytest

from upop.families.names import renamed, turned

TOWERS = (("visual.block.", "vision.layers."), ("visual.", "vision."))
PARTS = ((".attn.", ".self_attn."), (".proj.", ".out."))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("visual.block.3.attn.proj.weight", "vision.layers.3.self_attn.out.weight"),
        ("visual.norm.bias", "vision.norm.bias"),
        ("text.block.3.attn.proj.weight", "text.block.3.attn.proj.weight"),
        ("not.visual.block.3", "not.visual.block.3"),
    ],
)
def test_there_and_back(name, expected):
    assert renamed(name, TOWERS, PARTS) == expected
    assert renamed(expected, turned(TOWERS), turned(PARTS)) == name
    assert turned(turned(TOWERS)) == TOWERS


def test_the_first_beginning_that_fits_counts():
    assert renamed("a.b.c", (("a.", "x."), ("a.b.", "y."))) == "x.b.c"
    assert renamed("a.b.c", (("a.b.", "y."), ("a.", "x."))) == "y.c"
