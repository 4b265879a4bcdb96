import pytest
import torch
from torch import nn

from upop.export.graphs.ports import CHECKED, LENGTHS, TRACED, Graph, Output, Port, Words

IDS, MASK = (Port(name, ("texts", "text_length"), kind) for name, kind in (("ids", "ids"), ("mask", "mask")))
IMAGES = Port("pixels", ("images", 3, 4, 4), "images")
ANSWER = Port("answer", ("texts", "answer_length"), "ids")
WORDS = Words(count=50, longest=20, end=7, pad=9)
GRAPH = Graph("both", nn.Identity(), (IMAGES, IDS, MASK, ANSWER), (Output("out", ("images", "texts")),), WORDS)


def test_limits_are_those_of_what_varies():
    assert GRAPH.limits() == {"images": None, "texts": None, "text_length": 20, "answer_length": 20}
    assert Graph("image", nn.Identity(), (IMAGES,), ()).limits() == {"images": None}


def test_types():
    assert [port.dtype for port in (IMAGES, IDS, MASK)] == [torch.float32, torch.int64, torch.int64]


def test_sizes_that_are_checked_are_others_than_those_that_are_traced():
    traced, checked = GRAPH.traced(), GRAPH.checked()
    assert traced == {"images": 3, "texts": 4, "text_length": 10, "answer_length": 10}
    assert [sizes["text_length"] for sizes in checked] == [20, 6, 1]
    for name in traced:
        values = [sizes[name] for sizes in checked]
        assert traced[name] not in values
        assert len(set(values)) == 3


@pytest.mark.parametrize("longest", [4, 12, 77, 512])
def test_lengths_stay_within_the_positions(longest):
    graph = Graph("text", nn.Identity(), (IDS,), (), Words(50, longest, 1, 1))
    found = [sizes["text_length"] for sizes in (graph.traced(), *graph.checked())]
    assert found[1] == longest
    assert found[0] >= 2  # torch.export takes 1 for a constant
    assert all(1 <= length <= longest for length in found)


def test_no_count_is_one_while_tracing():
    assert min(TRACED.values()) > 1
    assert all(set(counts) == set(TRACED) for counts in CHECKED)
    assert not set(TRACED) & set(LENGTHS)


def test_samples():
    sizes = {"images": 2, "texts": 40, "text_length": 20, "answer_length": 3}
    found = GRAPH.sample(sizes, seed=1)
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "pixels": (2, 3, 4, 4),
        "ids": (40, 20),
        "mask": (40, 20),
        "answer": (40, 3),
    }
    assert {name: value.dtype for name, value in found.items()} == {port.name: port.dtype for port in GRAPH.inputs}
    counts = found["mask"].sum(1)
    assert counts[0] == 20
    assert (counts.min() >= 1, len(set(counts.tolist())) > 5) == (True, True)
    for ids, mask, count in zip(found["ids"].tolist(), found["mask"].tolist(), counts.tolist(), strict=True):
        assert mask == [1] * count + [0] * (20 - count)
        assert ids[count - 1] == WORDS.end
        assert ids[count:] == [WORDS.pad] * (20 - count)
    assert found["answer"][:, -1].tolist() == [WORDS.end] * 40
    assert 0 <= found["ids"].min() <= found["ids"].max() < 50


def test_samples_are_those_of_their_seed():
    sizes = GRAPH.traced()
    one, two, other = GRAPH.sample(sizes, 1), GRAPH.sample(sizes, 1), GRAPH.sample(sizes, 2)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["pixels"], other["pixels"])
    assert not torch.equal(one["ids"], other["ids"])
