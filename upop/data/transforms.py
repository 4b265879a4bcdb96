"""Turn an image into the model's pixels: augmented for training, as the processor does it for evaluation.

``paper`` is the augmentation that BLIP and UPop train with: a random crop of 50-100 % of the area, a
horizontal flip, and two of ten mild operations. Both of them normalise with the processor's own mean and deviation
afterwards.

Neither flips the words: a caption that says *left* stays as it is when its image is mirrored, here as in the authors'
code. Where the sides matter, set ``flip`` to false.

Shapes: ``S`` pixels along a side of the model's input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

Augment = Literal["paper", "light", "none"]
AUGMENTS: tuple[Augment, ...] = get_args(Augment)
ImageTransform = Callable[[Image.Image], Tensor]

PAPER_OPERATIONS = (
    "Identity", "AutoContrast", "Brightness", "Sharpness", "Equalize",
    "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate",
)  # fmt: skip
PAPER_MAGNITUDE = 5
"""Of ten, as the authors set it."""


class PaperAugment(v2.RandAugment):
    """RandAugment with the ten operations that BLIP trains with: two of them per image, at magnitude 5 of 10.

    torchvision's own list has four more, which change colours so much that captions about colours become wrong.
    """

    _AUGMENTATION_SPACE = {name: v2.RandAugment._AUGMENTATION_SPACE[name] for name in PAPER_OPERATIONS}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__(num_ops=2, magnitude=PAPER_MAGNITUDE, num_magnitude_bins=11)


def image_size(processor: Any) -> tuple[int, int]:  # noqa: ANN401 (transformers has no common type)
    """Height and width of what the processor's image processor gives, in pixels.

    Raises:
        ValueError: If it does not give images of one size.
    """
    images = getattr(processor, "image_processor", processor)
    size = getattr(images, "crop_size", None) if getattr(images, "do_center_crop", False) else None
    size = size if size is not None else getattr(images, "size", None)
    if isinstance(size, int):
        return size, size
    if isinstance(size, tuple | list) and len(size) == 2:
        return int(size[0]), int(size[1])
    height, width, edge = (_part(size, key) for key in ("height", "width", "shortest_edge"))
    if height and width:
        return height, width
    if edge:
        return edge, edge
    raise ValueError(
        f"the image processor has size {size!r}; expected a whole number, {{'height', 'width'}} or {{'shortest_edge'}}"
    )


def training_transform(
    processor: Any,  # noqa: ANN401
    augment: Augment,
    flip: bool,
    whole: bool = False,
) -> ImageTransform:
    """Augment one image and normalise it.

    Args:
        processor: The model's processor: its size, mean and deviation are taken over.
        augment: ``paper``; ``light``: square crops of 64-100 % of the area, brightness and contrast within 20 %;
            ``none``: the processor's own preprocessing.
        flip: Whether to mirror every second image (not with ``none``).
        whole: With ``light``, resize the whole image instead of cropping it: nothing that a text counts gets lost.

    Returns:
        A function from an RGB image to floats ``(3, S, S)``. It draws from torch's global generator.

    Raises:
        ValueError: If ``augment`` is unknown.
    """
    if augment not in AUGMENTS:
        raise ValueError(f"augment is {augment!r}; expected one of {sorted(AUGMENTS)}")
    if augment == "none":
        return lambda image: evaluation_pixels(processor, [image])[0]
    side = image_size(processor)
    bicubic = InterpolationMode.BICUBIC
    mirror = [v2.RandomHorizontalFlip()] if flip else []
    steps: list[Callable[..., Any]]
    if augment == "paper":
        steps = [v2.RandomResizedCrop(side, scale=(0.5, 1.0), interpolation=bicubic), *mirror, PaperAugment()]
    else:
        crop = v2.RandomResizedCrop(side, scale=(0.64, 1.0), ratio=(1.0, 1.0), interpolation=bicubic)
        resize = v2.Resize(side, interpolation=bicubic) if whole else crop
        steps = [resize, *mirror, v2.ColorJitter(brightness=0.2, contrast=0.2)]
    return v2.Compose([*steps, v2.PILToTensor(), _Normalise(processor)])


def evaluation_pixels(processor: Any, images: list[Image.Image]) -> Tensor:  # noqa: ANN401
    """Floats ``(B, 3, S, S)`` as the processor itself prepares the images."""
    return processor.image_processor(images, return_tensors="pt")["pixel_values"]


class _Normalise:
    """Bytes ``(3, S, S)`` to floats, with the scale, mean and deviation that the image processor would apply."""

    def __init__(self, processor: Any) -> None:  # noqa: ANN401
        images = processor.image_processor
        scale = float(images.rescale_factor) if images.do_rescale else 1.0
        mean = torch.tensor(images.image_mean if images.do_normalize else [0.0] * 3).view(3, 1, 1)
        deviation = torch.tensor(images.image_std if images.do_normalize else [1.0] * 3).view(3, 1, 1)
        self.factor, self.offset = scale / deviation, -mean / deviation

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels * self.factor + self.offset


def _part(size: Any, key: str) -> int | None:  # noqa: ANN401 (a dict or a SizeDict)
    value = size.get(key) if isinstance(size, dict) else getattr(size, key, None)
    return int(value) if value else None
