"""Candidates, their pairs, how these are shared out, and their scores, against brute force."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests import tiny
from tests.tasks.test_matching import images, states, texts
from upop.tasks.candidates import Encoded, blocks, check_k, find_candidates, nearest, score_pairs


def features(rows: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("chunk", [1, 3, 512])
def test_the_nearest_are_those_of_a_full_sort(chunk: int) -> None:
    queries, gallery = features(7, 1), features(11, 2)
    similarity, number = nearest(queries, gallery, 4, chunk)
    whole = queries.numpy() @ gallery.numpy().T
    np.testing.assert_array_equal(number.numpy(), np.argsort(-whole, axis=1)[:, :4])
    np.testing.assert_allclose(similarity.numpy(), -np.sort(-whole, axis=1)[:, :4], rtol=1e-5)


def test_every_pair_of_both_directions_comes_once_and_gets_its_score_back() -> None:
    found = find_candidates(features(5, 1), features(12, 2), 3)
    image, text, place = found.pairs()
    pairs = list(zip(image.tolist(), text.tolist(), strict=True))
    wanted = [(i, t) for i, row in enumerate(found.texts.tolist()) for t in row]
    wanted += [(i, t) for t, row in enumerate(found.images.tolist()) for i in row]
    assert sorted(set(wanted)) == pairs
    assert [pairs[number] for number in place.tolist()] == wanted
    assert len(wanted) == (5 + 12) * 3 > len(pairs)
    of_texts, of_images = found.scores(100.0 * image + text, place)
    for i in range(5):
        expected = 100.0 * i + found.texts[i] + found.text_similarity[i]
        assert torch.equal(of_texts[i], expected)
    for t in range(12):
        expected = 100.0 * found.images[t] + t + found.image_similarity[t]
        assert torch.equal(of_images[t], expected)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 90), st.integers(1, 20))
def test_blocks_hold_every_pair_once_and_are_no_larger_than_allowed(seed: int, pairs: int, most: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 6, (pairs,), generator=generator)
    length = torch.randint(1, 30, (pairs,), generator=generator)
    made = list(blocks(image, length, most))
    assert all(block.numel() <= most for block in made)
    seen = [number for block in made for number in block.flatten().tolist() if number >= 0]
    assert sorted(seen) == list(range(pairs))
    for block in made:
        for row in block:
            assert len(set(image[row[row >= 0]].tolist())) == 1, "a row is of one image"
            assert row[0] >= 0


def test_blocks_waste_little_and_put_texts_of_a_length_together() -> None:
    image = torch.arange(40).repeat_interleave(10)
    length = torch.arange(10).repeat(40)
    made = list(blocks(image, length, 64))
    assert len(made) == 7, "six images of ten texts fit into 64 places"
    assert all(block.shape[1] == 10 for block in made)
    (first, second) = list(blocks(torch.zeros(8, dtype=torch.long), torch.tensor([5, 1, 7, 3, 8, 2, 6, 4]), 4))
    assert first.flatten().tolist() == [1, 5, 3, 7]
    assert second.flatten().tolist() == [0, 6, 2, 4]


@pytest.mark.parametrize("most", [1, 4, 100])
def test_scores_are_those_of_a_loop_over_hugging_face_s_model(most: int) -> None:
    model = tiny.build("blip_retrieval")
    pixels, (ids, mask) = images(4), texts(9)
    held = dict(enumerate(states(model, pixels)))
    image, text = torch.tensor([3, 0, 0, 1, 3, 3, 0, 3]), torch.tensor([8, 1, 0, 4, 2, 7, 5, 0])
    counted: list[int] = []
    with torch.no_grad():
        found = score_pairs(model, held, image, text, ids, mask, most, counted.append)
        expected = [
            model(pixel_values=pixels[i : i + 1], input_ids=ids[t : t + 1], attention_mask=mask[t : t + 1]).itm_score
            for i, t in zip(image.tolist(), text.tolist(), strict=True)
        ]
    torch.testing.assert_close(found, torch.cat(expected)[:, 1], rtol=1e-5, atol=1e-5)
    assert sum(counted) == 8
    assert len(counted) == {1: 8, 4: 3, 100: 1}[most]


def test_no_pairs_have_no_scores() -> None:
    nothing = torch.zeros(0, dtype=torch.long)
    assert score_pairs(tiny.build("blip_retrieval"), {}, nothing, nothing, *texts(2), 4).shape == (0,)


def over_ranks(parts: list[Encoded], name: str, dtype: torch.dtype) -> list[Tensor]:
    """What every rank gets, the ranks being asked in turn until they agree, as an all-reduce would have them."""
    asked: list[list[Tensor]] = [[] for _ in parts]
    answers: list[Tensor] = []

    def most(rank: int) -> Callable[[Tensor], Tensor]:
        def reduce(value: Tensor) -> Tensor:
            asked[rank].append(value)
            return answers[len(asked[rank]) - 1] if len(asked[rank]) <= len(answers) else value

        return reduce

    for _ in range(2):  # sizes, then rows
        asked = [[] for _ in parts]
        for rank, part in enumerate(parts):
            part.everywhere(name, dtype, most(rank))
        number = len(answers)
        answers.append(torch.stack([values[number] for values in asked]).amax(0))
    asked = [[] for _ in parts]
    return [part.everywhere(name, dtype, most(rank)) for rank, part in enumerate(parts)]


def test_rows_of_all_ranks_come_in_order() -> None:
    rows, whole = torch.randn(5, 3), [Encoded(torch.device("cpu")) for _ in range(3)]
    whole[0].add(torch.tensor([0, 4]), images=rows[[0, 4]])
    whole[0].add(torch.tensor([2]), images=rows[[2]])
    whole[1].add(torch.tensor([1, 3, 4]), images=rows[[1, 3, 4]])  # one of them twice; rank 2 has none
    for found in over_ranks(whole, "images", torch.float32):
        assert torch.equal(found, rows)


def test_tokens_of_other_widths_are_filled_up_with_zeros() -> None:
    whole = [Encoded(torch.device("cpu")) for _ in range(2)]
    whole[0].add(torch.tensor([1]), ids=torch.tensor([[7, 8, 9]]))
    whole[1].add(torch.tensor([0]), ids=torch.tensor([[5, 6]]))
    for found in over_ranks(whole, "ids", torch.long):
        assert found.tolist() == [[5, 6, 0], [7, 8, 9]]


def test_messages() -> None:
    with pytest.raises(ValueError, match="k is 256 candidates, but split 'test' has 200 images per gallery; set k"):
        check_k(256, 200, "split 'test'")
    with pytest.raises(ValueError, match="k is 9 candidates, but split 'val' reports R@10; set k to 10 or more"):
        check_k(9, 200, "split 'val'")
    with pytest.raises(ValueError, match="k is 7 candidates, but the data reports R@10; set k to 8 or more"):
        check_k(7, 8, "the data")
    check_k(8, 8, "the data")
