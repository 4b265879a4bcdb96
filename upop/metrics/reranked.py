"""Recall of a retrieval whose best candidates were scored a second time by a better, slower model.

The fast scores pick ``K`` candidates for each query, the slow ones order them. A positive that is not among the
candidates is a miss, whatever ``k``: re-ranking cannot bring back what the fast scores left out. Among the candidates
the rank is that of :mod:`upop.metrics.recall`: a negative that ties with the best positive is ahead of it.

Source: BLIP, Li et al., ICML 2022, https://arxiv.org/abs/2201.12086, whose evaluation gives all other pairs the score
-100 and sorts whole rows. For ``K`` of 10 or more both say the same, but for ties; below that BLIP may find a positive
among the pairs that it never scored, by the luck of their order.

Shapes: ``I`` images, ``T`` texts, ``Q`` queries, ``K`` candidates of each query.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from upop.metrics.recall import _check_captions, means, recall_at

MISS = torch.iinfo(torch.int64).max


def reranked_ranks(scores: Tensor, positive: Tensor) -> Tensor:
    """Rank of the best positive of each query among its candidates, 0 = found first, ``(Q,)`` int64.

    A query without a positive among them gets :data:`MISS`, which no recall counts.

    Args:
        scores: Final score of each candidate, higher is better, ``(Q, K)``.
        positive: Whether each candidate belongs to its query, ``(Q, K)``, boolean.

    Raises:
        ValueError: If shapes or types do not fit.

    >>> reranked_ranks(torch.tensor([[0.1, 0.7], [0.5, 0.5]]), torch.tensor([[True, False], [False, True]]))
    tensor([1, 1])
    """
    if scores.ndim != 2 or scores.shape != positive.shape or positive.dtype != torch.bool:
        raise ValueError(
            f"scores have shape {tuple(scores.shape)!r} and positive is {positive.dtype} of shape "
            f"{tuple(positive.shape)!r}; give booleans, and (Q, K) for both"
        )
    best = scores.masked_fill(~positive, -math.inf).amax(1, keepdim=True)
    ahead = ((scores >= best) & ~positive).sum(1)
    return ahead.masked_fill(~positive.any(1), MISS)


def reranked_recalls(
    i2t_candidates: Tensor, i2t_scores: Tensor, t2i_candidates: Tensor, t2i_scores: Tensor, caption_image: Tensor
) -> dict[str, float]:
    """Recall of images for texts and of texts for images, in percent.

    The names are those of :func:`~upop.metrics.recall.retrieval_recalls`. The two ways may differ in ``K``. For
    folds, pick and score the candidates of each, call this for each, and average.

    Args:
        i2t_candidates: Numbers of the texts that each image was compared with, ``(I, K)``, integer.
        i2t_scores: Their final scores, ``(I, K)``.
        t2i_candidates: Numbers of the images that each text was compared with, ``(T, K)``, integer.
        t2i_scores: Their final scores, ``(T, K)``.
        caption_image: Image number of each text, ``(T,)``, integer.

    Raises:
        ValueError: If sizes do not fit, ``K`` is larger than the gallery, a score is not finite, a query has a
            candidate twice or one that does not exist, or an image has no caption.
    """
    images, texts = len(i2t_candidates), len(t2i_candidates)
    _check_candidates("i2t", i2t_candidates, i2t_scores, texts)
    _check_candidates("t2i", t2i_candidates, t2i_scores, images)
    _check_captions(caption_image, images, texts)
    caption_image = caption_image.to(i2t_candidates.device).long()
    number = torch.arange(images, device=caption_image.device)
    ranks = {
        "i2t": reranked_ranks(i2t_scores, caption_image[i2t_candidates] == number[:, None]),
        "t2i": reranked_ranks(t2i_scores, t2i_candidates == caption_image[:, None]),
    }
    recalls = {f"{way}_r{k}": value for way, found in ranks.items() for k, value in recall_at(found).items()}
    return recalls | means(recalls)


def _check_candidates(way: str, candidates: Tensor, scores: Tensor, gallery: int) -> None:
    """Refuse candidates that are none, and scores that cannot be ordered."""
    if candidates.ndim != 2 or candidates.shape != scores.shape or candidates.is_floating_point():
        raise ValueError(
            f"{way} candidates are {candidates.dtype} of shape {tuple(candidates.shape)!r} and their scores have shape "
            f"{tuple(scores.shape)!r}; give whole numbers, and (queries, K) for both"
        )
    if not 0 < candidates.shape[1] <= gallery:
        raise ValueError(
            f"{way} queries have {candidates.shape[1]} candidates, but the gallery has {gallery} items; re-rank at "
            f"least 1 and at most {gallery}"
        )
    ordered = candidates.sort(1).values
    outside = torch.nonzero((ordered[:, 0] < 0) | (ordered[:, -1] >= gallery)).flatten()
    if len(outside):
        row = int(outside[0])
        wrong = int(ordered[row, 0]) if ordered[row, 0] < 0 else int(ordered[row, -1])
        raise ValueError(f"{way} query {row} has candidate {wrong}, but the gallery has the items 0 to {gallery - 1}")
    twice = torch.nonzero((ordered[:, 1:] == ordered[:, :-1]).any(1)).flatten()
    if len(twice):
        raise ValueError(f"{way} query {int(twice[0])} has a candidate twice; give each query different candidates")
    broken = int((~torch.isfinite(scores)).any(1).sum())
    if broken:
        raise ValueError(
            f"{broken} of {len(scores)} {way} queries have scores that are not finite; look for an overflow"
        )
