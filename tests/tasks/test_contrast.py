"""Contrastive and distillation losses against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from upop.tasks.contrast import contrastive, distil_features, distil_logits, distil_rows, positives, soft_contrastive


def features(rows: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed)), dim=1)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def test_contrastive_is_the_clip_loss_when_images_differ() -> None:
    images, texts, scale = features(6, 1), features(6, 2), torch.tensor(7.0)
    logits = 7.0 * images.numpy() @ texts.numpy().T
    expected = -0.5 * (np.diag(log_softmax(logits)).mean() + np.diag(log_softmax(logits.T)).mean())
    assert float(contrastive(images, texts, scale, torch.arange(6))) == pytest.approx(expected, rel=1e-5)


def test_two_captions_of_one_image_share_the_target() -> None:
    target = positives(torch.tensor([4, 9, 4]), torch.tensor([4, 9, 4, -1]))
    assert target.tolist() == [[0.5, 0, 0.5, 0], [0, 1, 0, 0], [0.5, 0, 0.5, 0]]


def test_soft_targets_mix_in_what_the_momentum_encoder_believes() -> None:
    own, others, momentum = features(3, 1), features(8, 2), features(3, 3)
    target = positives(torch.arange(3), torch.tensor([0, 1, 2, -1, -1, 7, 8, 9]))
    believed = np.exp(log_softmax(4.0 * momentum.numpy() @ others.numpy().T))
    mixed = 0.4 * believed + 0.6 * target.numpy()
    expected = -(mixed * log_softmax(4.0 * own.numpy() @ others.numpy().T)).sum(1).mean()
    found = soft_contrastive(own, others, momentum, torch.tensor(4.0), target, 0.4)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_distillation_is_zero_for_an_equal_student_and_the_kl_otherwise() -> None:
    student, teacher = torch.randn(4, 4), torch.randn(4, 4)
    assert float(distil_logits(teacher, teacher)) == pytest.approx(0.0, abs=1e-6)
    expected = 0.0
    for ours, theirs in ((student.numpy(), teacher.numpy()), (student.numpy().T, teacher.numpy().T)):
        believed = log_softmax(theirs)
        expected += 0.5 * (np.exp(believed) * (believed - log_softmax(ours))).sum(1).mean()
    assert float(distil_logits(student, teacher)) == pytest.approx(expected, rel=1e-5)


def test_rows_are_distilled_one_way() -> None:
    student, teacher = torch.randn(5, 2), torch.randn(5, 2)
    believed = log_softmax(teacher.numpy())
    expected = (np.exp(believed) * (believed - log_softmax(student.numpy()))).sum(1).mean()
    assert float(distil_rows(student, teacher)) == pytest.approx(expected, rel=1e-4)
    assert float(distil_rows(teacher, teacher)) == pytest.approx(0.0, abs=1e-6)


def test_feature_distance_is_two_minus_two_cosines() -> None:
    ours, theirs = features(6, 1), features(6, 2)
    expected = float((2 - 2 * (ours * theirs).sum(1)).mean())
    assert float(distil_features(ours, theirs)) == pytest.approx(expected, rel=1e-5)
