"""Contrastive losses of image and text features, and what a student learns from a teacher's similarities.

Shapes: ``B`` pairs of the batch over all ranks, ``N`` candidates (batch and queue), ``D`` feature size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def positives(index: Tensor, candidates: Tensor) -> Tensor:
    """Targets that share the weight among all candidates of the same image, ``(B, N)``, rows sum to 1.

    Args:
        index: Image number of each pair, ``(B,)``.
        candidates: Image number of each candidate, ``(N,)``; -1 for an empty place of the queue.
    """
    same = (index[:, None] == candidates[None, :]).float()
    return same / same.sum(1, keepdim=True)


def contrastive(images: Tensor, texts: Tensor, scale: Tensor, index: Tensor) -> Tensor:
    """Mean of the image-to-text and text-to-image cross-entropy over the batch (InfoNCE, CLIP).

    Two captions of one image in a batch are both right for it: they share the target.

    Args:
        images: Normalised image features, ``(B, D)``.
        texts: Normalised text features, ``(B, D)``.
        scale: Factor on the cosine similarities, scalar.
        index: Image number of each pair, ``(B,)``.
    """
    logits = scale * images @ texts.t()
    target = positives(index, index)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target))


def soft_contrastive(
    features: Tensor, candidates: Tensor, momentum: Tensor, scale: Tensor, target: Tensor, softness: float
) -> Tensor:
    """Cross-entropy with soft targets from momentum features, one direction (ALBEF, BLIP; as the UPop authors train).

    Args:
        features: Normalised features of the trained encoder, ``(B, D)``.
        candidates: Normalised momentum features of the other modality, batch then queue, ``(N, D)``.
        momentum: Normalised momentum features of the same modality, ``(B, D)``.
        scale: Factor on the cosine similarities, scalar.
        target: Hard targets, ``(B, N)``.
        softness: Weight of the momentum encoder's own distribution in the target, in [0, 1].
    """
    with torch.no_grad():
        believed = (scale * momentum @ candidates.t()).softmax(1)
        target = softness * believed + (1.0 - softness) * target
    return F.cross_entropy(scale * features @ candidates.t(), target)


def distil_logits(student: Tensor, teacher: Tensor) -> Tensor:
    """KL divergence from the teacher's to the student's distribution over the batch, mean of both directions.

    Args:
        student: Similarity logits ``(B, B)``, images in rows.
        teacher: The teacher's logits, ``(B, B)``.
    """
    return 0.5 * (distil_rows(student, teacher) + distil_rows(student.t(), teacher.t()))


def distil_rows(student: Tensor, teacher: Tensor) -> Tensor:
    """KL divergence from the teacher's to the student's distribution over the classes, mean of the rows.

    Args:
        student: Logits, ``(rows, classes)``.
        teacher: The teacher's logits, of the same shape.
    """
    return F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True)


def distil_features(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance of normalised features, ``2 - 2 cos``.

    Args:
        student: Normalised features, ``(B, D)``.
        teacher: The teacher's normalised features, ``(B, D)``.
    """
    return (student - teacher).square().sum(1).mean()
