"""Augmentation is the published one, and normalising is the processor's own."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from transformers import CLIPImageProcessor

from tests.data.pictures import processor
from upop.data.transforms import PAPER_OPERATIONS, PaperAugment, image_size, training_transform


def noise(size=(40, 30), seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"size": {"shortest_edge": 50}, "crop_size": {"height": 48, "width": 40}, "do_center_crop": True}, (48, 40)),
        (
            {"size": {"height": 64, "width": 32}, "crop_size": {"height": 9, "width": 9}, "do_center_crop": False},
            (64, 32),
        ),
        ({"size": {"shortest_edge": 50}, "crop_size": None, "do_center_crop": True}, (50, 50)),
        ({"size": 70}, (70, 70)),
        ({"size": (70, 60)}, (70, 60)),
    ],
)
def test_the_size_is_found_however_it_is_written(settings, expected):
    assert image_size(SimpleNamespace(image_processor=SimpleNamespace(**settings))) == expected


def test_the_size_agrees_with_what_real_processors_give():
    for size in ({"shortest_edge": 48}, {"height": 48, "width": 48}):
        images = CLIPImageProcessor(size=size, crop_size={"height": 40, "width": 40})
        assert image_size(images) == tuple(images(noise(), return_tensors="pt")["pixel_values"].shape[-2:])
    with pytest.raises(ValueError, match=r"has size \{'longest_edge': 3\}; expected a whole number"):
        image_size(SimpleNamespace(size={"longest_edge": 3}))


@pytest.mark.parametrize("augment", ["paper", "light", "none"])
def test_a_plain_image_comes_out_as_the_processor_would_have_it(augment):
    """On an image of one colour crops and flips change nothing, and a mild operation only its brightness."""
    transform = training_transform(processor(), augment, flip=True)
    grey = Image.new("RGB", (70, 70), (128, 128, 128))
    own = processor().image_processor([grey], return_tensors="pt")["pixel_values"][0]
    found = [transform(grey) for _ in range(40)]
    assert all(pixels.shape == own.shape == (3, 64, 64) for pixels in found)
    assert all(pixels.dtype == torch.float32 for pixels in found)
    assert min((pixels[:, 32, 32] - own[:, 32, 32]).abs().max() for pixels in found) < 0.02


def test_without_augmentation_it_is_the_processor():
    image = noise()
    own = processor().image_processor([image], return_tensors="pt")["pixel_values"][0]
    assert torch.equal(training_transform(processor(), "none", flip=True)(image), own)


def test_normalising_uses_the_mean_and_deviation_of_each_channel():
    images = CLIPImageProcessor(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        image_mean=[0.1, 0.2, 0.3],
        image_std=[0.5, 1, 2],
    )
    paint = Image.new("RGB", (40, 40), (51, 102, 153))
    own = SimpleNamespace(image_processor=images)
    light = torch.stack([training_transform(own, "light", flip=False)(paint).mean((1, 2)) for _ in range(200)]).mean(0)
    assert torch.allclose(light, torch.tensor([0.2, 0.2, 0.15]), atol=0.03)


@pytest.mark.parametrize("augment", ["paper", "light"])
def test_the_same_seed_gives_the_same_pixels_and_another_seed_others(augment):
    transform, found = training_transform(processor(), augment, flip=True), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(transform(noise()))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_flipping_is_an_option():
    half = Image.new("RGB", (64, 64))
    half.paste((255, 255, 255), (0, 0, 32, 64))
    for flip in (True, False):
        transform = training_transform(processor(), "light", flip=flip)
        mirrored = [bool(pixels[0, :, :8].mean() < pixels[0, :, -8:].mean()) for pixels in map(transform, [half] * 40)]
        assert any(mirrored) is flip
        assert not all(mirrored)


def test_the_paper_operations_are_those_of_the_authors():
    """Names and magnitudes after BLIP's transform/randaugment.py: magnitude 5 of 10 is half of each one's range."""
    space = PaperAugment()._AUGMENTATION_SPACE
    assert tuple(space) == PAPER_OPERATIONS
    assert {"Color", "Contrast", "Posterize", "Solarize"} == set(v2.RandAugment._AUGMENTATION_SPACE) - set(space)
    augment = PaperAugment()
    strength = {
        name: space[name][0](augment.num_magnitude_bins, 100, 100) for name in ("Rotate", "ShearX", "Brightness")
    }
    assert [round(float(bins[augment.magnitude]), 3) for bins in strength.values()] == [15.0, 0.15, 0.45]


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(ValueError, match=r"augment is 'heavy'; expected one of \['light', 'none', 'paper'\]"):
        training_transform(processor(), "heavy", flip=True)


def test_whole_images_are_resized_and_lose_no_edge():
    image = Image.new("RGB", (128, 64), (0, 0, 0))
    for box in ((0, 0, 8, 64), (120, 0, 128, 64), (0, 0, 128, 8), (0, 56, 128, 64)):
        image.paste((255, 255, 255), box)
    whole = training_transform(processor(), "light", flip=True, whole=True)
    cropped = training_transform(processor(), "light", flip=True)
    edges = [(slice(None), slice(None), place) for place in (1, -2)] + [(slice(None), place) for place in (1, -2)]

    def frame(pixels):
        return all(pixels[edge].mean() > pixels[:, 32, 32].mean() + 1 for edge in edges)

    assert all(frame(whole(image)) for _ in range(20))
    assert not all(frame(cropped(image)) for _ in range(20))
