import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upop.metrics import reranked_ranks, reranked_recalls, retrieval_recalls
from upop.metrics.reranked import MISS

KEYS = {f"{way}_{name}" for way in ("i2t", "t2i") for name in ("r1", "r5", "r10", "mean")} | {"r1_mean", "mean"}


def data(images=14, texts=40, k=(12, 10), seed=0, ties=False):
    """Candidates and final scores both ways, and the image of each text."""
    generator = torch.Generator().manual_seed(seed)
    caption_image = torch.cat([torch.arange(images), torch.randint(images, (texts - images,), generator=generator)])
    caption_image = caption_image[torch.randperm(texts, generator=generator)]
    fast = torch.randn(images, texts, generator=generator)
    fast[caption_image, torch.arange(texts)] += 1.0
    parts = []
    for scores, count in ((fast, k[0]), (fast.T, k[1])):
        best, numbers = scores.topk(count, 1)
        final = best + torch.randn(best.shape, generator=generator)
        parts += [numbers, final.round() if ties else final]
    return *parts, caption_image


def naive(candidates, scores, positives):
    """Recalls by walking each list, best first and positives last among equals."""
    found = {1: 0, 5: 0, 10: 0}
    for row, values, good in zip(candidates.tolist(), scores.tolist(), positives, strict=True):
        order = sorted(zip(row, values, strict=True), key=lambda pair: (-pair[1], pair[0] in good))
        hits = [place for place, (item, _) in enumerate(order) if item in good]
        for k in found:
            found[k] += bool(hits) and hits[0] < k
    return [100 * count / len(candidates) for count in found.values()]


def naive_recalls(i2t_candidates, i2t_scores, t2i_candidates, t2i_scores, caption_image):
    owner = caption_image.tolist()
    captions = [{t for t, o in enumerate(owner) if o == i} for i in range(len(i2t_candidates))]
    i2t = naive(i2t_candidates, i2t_scores, captions)
    t2i = naive(t2i_candidates, t2i_scores, [{o} for o in owner])
    out = {f"{way}_r{k}": v for way, vs in (("i2t", i2t), ("t2i", t2i)) for k, v in zip((1, 5, 10), vs, strict=True)}
    out |= {"i2t_mean": np.mean(i2t), "t2i_mean": np.mean(t2i), "mean": np.mean(i2t + t2i)}
    return out | {"r1_mean": (i2t[0] + t2i[0]) / 2}


def blip_recalls(i2t_candidates, i2t_scores, t2i_candidates, t2i_scores, caption_image):
    """The six recalls as BLIP's evaluation gets them: -100 wherever no pair was scored, and a sort of whole rows."""
    images, texts = len(i2t_candidates), len(t2i_candidates)
    i2t, t2i = torch.full((images, texts), -100.0), torch.full((texts, images), -100.0)
    i2t.scatter_(1, i2t_candidates, i2t_scores)
    t2i.scatter_(1, t2i_candidates, t2i_scores)
    out = {}
    for way, matrix in (("i2t", i2t), ("t2i", t2i)):
        order = matrix.numpy().argsort(1)[:, ::-1]
        owner = caption_image.numpy()
        good = owner[order] == np.arange(images)[:, None] if way == "i2t" else order == owner[:, None]
        first = good.argmax(1)
        out |= {f"{way}_r{k}": 100 * np.mean(first < k) for k in (1, 5, 10)}
    return out


@given(st.integers(2, 15), st.integers(0, 25), st.integers(0, 10**6), st.data())
@settings(max_examples=60, deadline=None)
def test_brute_force_with_ties(images, more, seed, draw):
    texts = images + more
    k = draw.draw(st.integers(1, texts)), draw.draw(st.integers(1, images))
    given_ = data(images, texts, k, seed, ties=True)
    got = reranked_recalls(*given_)
    assert set(got) == KEYS
    assert got == pytest.approx(naive_recalls(*given_))


@given(st.integers(10, 30), st.integers(0, 40), st.integers(0, 10**6), st.data())
@settings(max_examples=60, deadline=None)
def test_blips_evaluation_says_the_same_for_ten_candidates_or_more(images, more, seed, draw):
    texts = images + more
    given_ = data(images, texts, (draw.draw(st.integers(10, texts)), draw.draw(st.integers(10, images))), seed)
    got = reranked_recalls(*given_)
    expected = blip_recalls(*given_)
    assert {name: got[name] for name in expected} == pytest.approx(expected)


def test_the_whole_gallery_as_candidates_is_plain_retrieval():
    generator = torch.Generator().manual_seed(5)
    caption_image = torch.randperm(36, generator=generator) % 12
    image, text = (torch.randn(n, 4, generator=generator).round() for n in (12, 36))
    scores = image @ text.T
    i2t = torch.stack([torch.randperm(36, generator=generator) for _ in range(12)])
    t2i = torch.stack([torch.randperm(12, generator=generator) for _ in range(36)])
    got = reranked_recalls(i2t, scores.gather(1, i2t), t2i, scores.T.gather(1, t2i), caption_image)
    assert got == pytest.approx(retrieval_recalls(image, text, caption_image))


def test_a_positive_that_is_no_candidate_is_a_miss_in_a_gallery_of_any_size():
    scores = torch.tensor([[3.0, 2.0], [3.0, 2.0], [2.0, 2.0]])
    positive = torch.tensor([[False, True], [False, False], [True, False]])
    assert reranked_ranks(scores, positive).tolist() == [1, MISS, 1]
    candidates = torch.tensor([[1], [0]])  # each query meets only the wrong item
    got = reranked_recalls(candidates, torch.ones(2, 1), candidates, torch.ones(2, 1), torch.tensor([0, 1]))
    assert set(got.values()) == {0.0}


def test_the_order_of_candidates_does_not_matter_and_a_tie_counts_against():
    i2t, scores, *rest = data(ties=True)
    again = reranked_recalls(i2t.flip(1), scores.flip(1), *rest)
    assert again == reranked_recalls(i2t, scores, *rest)
    flat = [torch.ones_like(part) if part.is_floating_point() else part for part in data()]
    assert reranked_recalls(*flat)["t2i_r1"] == 0.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_any_float_dtype(dtype):
    parts = data(ties=True)
    as_dtype = [part.to(dtype) if part.is_floating_point() else part.int() for part in parts[:4]]
    assert reranked_recalls(*as_dtype, parts[4].int()) == reranked_recalls(*parts)


def test_refuses():
    i2t, i2t_scores, t2i, t2i_scores, caption_image = data(6, 9, (4, 4))

    def refused(message, **changes):
        arguments = {
            "i2t_candidates": i2t, "i2t_scores": i2t_scores, "t2i_candidates": t2i, "t2i_scores": t2i_scores,
            "caption_image": caption_image,
        }  # fmt: skip
        with pytest.raises(ValueError, match=message):
            reranked_recalls(**arguments | changes)

    wide = torch.arange(9).repeat(9, 1)
    refused(
        "t2i queries have 9 candidates, but the gallery has 6 items; re-rank at least 1 and at most 6",
        t2i_candidates=wide, t2i_scores=torch.zeros(9, 9),
    )  # fmt: skip
    refused("i2t queries have 0 candidates", i2t_candidates=i2t[:, :0], i2t_scores=i2t_scores[:, :0])
    refused(
        r"i2t candidates are torch.int64 of shape \(6, 4\) and their scores have shape \(6, 3\); give whole",
        i2t_scores=i2t_scores[:, :3],
    )
    refused("i2t candidates are torch.float32 of shape", i2t_candidates=i2t.float())
    outside = t2i.clone()
    outside[3, 2] = 6
    refused("t2i query 3 has candidate 6, but the gallery has the items 0 to 5", t2i_candidates=outside)
    outside[3, 2] = -1
    refused("t2i query 3 has candidate -1, but the gallery has the items 0 to 5", t2i_candidates=outside)
    twice = i2t.clone()
    twice[2, 0] = twice[2, 3]
    refused("i2t query 2 has a candidate twice; give each query different candidates", i2t_candidates=twice)
    broken = i2t_scores.clone()
    broken[1, 1], broken[4, 0] = float("nan"), float("inf")
    refused("2 of 6 i2t queries have scores that are not finite; look for an overflow", i2t_scores=broken)
    refused("a caption names image 8, but the images are 0 to 5", caption_image=caption_image.clamp(max=0) + 8)
    with pytest.raises(ValueError, match=r"scores have shape \(6, 4\) and positive is torch.int64 of shape \(6, 4\)"):
        reranked_ranks(i2t_scores, i2t)
