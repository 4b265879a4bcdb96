"""Hard negatives, their batch and the matching logits, against numpy, loops and Hugging Face's model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests import tiny
from tests.plans import random_plan
from upop.families import find_sites
from upop.masks import Masks, mask_values
from upop.surgery import shrink_
from upop.tasks.matching import (
    NO_NEGATIVE,
    draw_negatives,
    match,
    match_groups,
    matching_loss,
    matching_pairs,
)


def texts(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens of 3 to 9 of 10 places, padded at the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 50, (rows, 10), generator=generator)
    mask = (torch.arange(10) < torch.randint(3, 10, (rows, 1), generator=generator)).long()
    return ids * mask + (1 - mask), mask


def images(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def states(model: nn.Module, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return model.vision_model(pixel_values=pixels).last_hidden_state


def test_negatives_are_drawn_by_the_softmax_of_what_is_no_positive() -> None:
    logits = torch.tensor([2.0, 0.5, -1.0, 1.0, 0.0])
    same = torch.tensor([True, False, False, True, False])
    drawn = draw_negatives(logits.expand(40000, -1), same.expand(40000, -1), torch.Generator().manual_seed(3))
    shares = np.exp(logits.numpy()) * ~same.numpy()
    found = np.bincount(drawn.numpy(), minlength=5) / 40000
    np.testing.assert_allclose(found, shares / shares.sum(), atol=0.01)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.sampled_from([1.0, 1e3, 1e6]))
def test_a_positive_is_never_drawn(seed: int, rows: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(0, 4, (rows,), generator=generator)
    same = index[:, None] == index
    logits = scale * torch.randn(rows, rows, generator=generator) + 10 * scale * same  # positives look best
    drawn = draw_negatives(logits, same, generator)
    for row, column in enumerate(drawn.tolist()):
        if column < 0:
            assert same[row].all()
        else:
            assert index[column] != index[row]


def test_a_draw_follows_from_its_generator() -> None:
    logits, same = torch.zeros(64, 64), torch.eye(64, dtype=torch.bool)
    first, second, other = (draw_negatives(logits, same, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_pairs_are_the_own_ones_then_a_negative_image_and_a_negative_text_each() -> None:
    ids, mask = texts(5)
    negative_image, negative_text = torch.tensor([1, 0, 4, -1, 2]), torch.tensor([3, 3, -1, 0, 1])
    pairs = matching_pairs(ids, mask, negative_image, negative_text, torch.arange(1, 4))
    image, text = [1, 2, 3, 0, 4, 0, 1, 2, 3], [1, 2, 3, 1, 2, 3, 3, 0, 0]
    assert pairs.image.tolist() == image
    assert torch.equal(pairs.input_ids, ids[text])
    assert torch.equal(pairs.attention_mask, mask[text])
    assert pairs.labels.tolist() == [1, 1, 1, 0, 0, NO_NEGATIVE, 0, NO_NEGATIVE, 0]


def test_the_loss_is_the_mean_cross_entropy_in_which_missing_pairs_are_zero() -> None:
    logits = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    labels = [1, 1, 0, NO_NEGATIVE, 0, 0]
    terms = [
        np.log(np.exp(row).sum()) - row[label] if label >= 0 else 0.0
        for row, label in zip(logits.double().numpy(), labels, strict=True)
    ]
    assert float(matching_loss(logits, torch.tensor(labels))) == pytest.approx(np.mean(terms), rel=1e-5)


def test_a_batch_of_one_image_has_a_finite_loss() -> None:
    logits = torch.randn(6, 2, requires_grad=True)
    same = torch.ones(2, 2, dtype=torch.bool)
    negatives = draw_negatives(torch.randn(2, 2), same)
    pairs = matching_pairs(*texts(2), negatives, negatives, torch.arange(2))
    loss = matching_loss(logits, pairs.labels)
    loss.backward()
    expected = nn.functional.cross_entropy(logits.detach()[:2], torch.ones(2).long()) / 3
    assert float(loss.detach()) == pytest.approx(float(expected))
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[2:] == 0).all()


def test_logits_are_those_of_hugging_face_pair_by_pair() -> None:
    model = tiny.build("blip_retrieval")
    pixels, (ids, mask) = images(4), texts(4)
    with torch.no_grad():
        found = match(model, states(model, pixels), ids, mask)
        alone = [
            model(pixel_values=pixels[i : i + 1], input_ids=ids[i : i + 1, : int(mask[i].sum())]).itm_score
            for i in range(4)
        ]
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("state", ["dense", "masked", "cut"])
def test_several_texts_per_image_get_the_logits_of_single_pairs(state: str) -> None:
    model = tiny.build("blip_retrieval")
    sites = find_sites(model)
    plan = random_plan(sites, seed=1)
    if state == "masked":
        Masks(model, sites).write_(mask_values(sites, plan))
    elif state == "cut":
        shrink_(model, sites, plan)
    of_images, (ids, mask) = states(model, images(3)), texts(12)
    with torch.no_grad():
        single = match(model, of_images.repeat_interleave(4, 0), ids, mask)
        found = match_groups(model, of_images, ids.view(3, 4, -1), mask.view(3, 4, -1))
    torch.testing.assert_close(found.flatten(0, 1), single, rtol=1e-5, atol=1e-5)
    assert float(single.std()) > 0.1, "the pairs differ"
