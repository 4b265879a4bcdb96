"""Schedules, moving averages and the settings of a phase."""

from __future__ import annotations

import math

import pytest
import torch

from tests import tiny
from upop.families import find_sites
from upop.masks import Masks
from upop.tasks.base import Distillation, Training, frozen_copy, moving_average_


def test_cosine_falls_to_zero_after_the_warm_up() -> None:
    settings = Training(warmup_steps=4)
    found = [settings.factor(step, 20) for step in range(20)]
    assert found[:4] == [0.25, 0.5, 0.75, 1.0]
    expected = [0.5 * (1 + math.cos(math.pi * step / 16)) for step in range(16)]
    assert found[4:] == pytest.approx(expected)


def test_constant_stays() -> None:
    assert {Training(lr_schedule="constant").factor(step, 9) for step in range(9)} == {1.0}


def test_moving_average_stays_dense_under_masks() -> None:
    model = tiny.build("clip")
    average, plain = frozen_copy(tiny.build("clip", seed=1)), frozen_copy(tiny.build("clip", seed=1))
    expected = {
        name: 0.9 * value + 0.1 * model.state_dict()[name]
        for name, value in plain.state_dict().items()
        if value.is_floating_point()
    }
    sites = find_sites(model)
    masks = Masks(model, sites)
    masks.write_({site.name: torch.zeros(site.units) for site in sites})
    moving_average_(average, model, 0.9)
    for name, value in expected.items():
        torch.testing.assert_close(average.state_dict()[name], value)


def test_messages() -> None:
    with pytest.raises(ValueError, match="epochs is -1; give 0 or more"):
        Training(epochs=-1)
    with pytest.raises(ValueError, match=r"lr is 0\.0; give a number above 0"):
        Training(lr=0.0)
    with pytest.raises(ValueError, match=r"distill.features is -0.5; give 0 \(off\) or more"):
        Distillation(features=-0.5)
