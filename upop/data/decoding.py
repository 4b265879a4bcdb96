"""Decode images of which nobody knows where they come from.

Only formats of photographs are decoded: some of Pillow's others start programs. A file that claims an absurd size is
refused before any of its pixels is decoded. A picture that cannot be decoded is named; it never becomes a black one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What is decoded, whatever a file is called. EPS, for one, would start Ghostscript on what the file says."""
MOST_OBLONG = 200
"""Length of an image over its width, at most: processors that fit the shorter side make a giant of a long thin one."""


def load_image(path: str | Path) -> Image.Image:
    """Decode an image to RGB.

    Raises:
        FileNotFoundError: If there is no such file.
        PermissionError: If it may not be read.
        ValueError: If it cannot be decoded, has more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``, or is more oblong than
            :data:`MOST_OBLONG`.
    """
    with opened(path) as image:
        return image.convert("RGB")


@contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """The image with its header read; what goes wrong with it is said with its path."""
    try:
        with Image.open(path, formats=_formats()) as image:
            _check_size(image.size)
            yield image
    except FileNotFoundError:
        raise FileNotFoundError(f"no image at {str(path)!r}") from None
    except PermissionError:
        raise PermissionError(f"image {str(path)!r} may not be read; mend its permissions") from None
    except Image.DecompressionBombError as error:
        claimed = re.search(r"\d+", str(error))
        raise ValueError(f"image {str(path)!r} {_too_large(claimed[0] if claimed else 'too many')}") from error
    except _AbsurdError as error:
        raise ValueError(f"image {str(path)!r} {error}") from error
    except UnidentifiedImageError as error:
        raise ValueError(
            f"image {str(path)!r} cannot be decoded: it is none of {list(_formats())}; download it again, convert it "
            "or drop its entry"
        ) from error
    except Exception as error:  # bytes that nobody vouches for fail in many ways
        what = str(error) or type(error).__name__
        raise ValueError(
            f"image {str(path)!r} cannot be decoded: {what}; download it again or drop its entry"
        ) from error


class _AbsurdError(Exception):
    """An image is of a shape that no photograph has."""


@cache
def _formats() -> tuple[str, ...]:
    """Those of :data:`FORMATS` that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check_size(size: tuple[int, int]) -> None:
    (width, height), (short, long) = size, sorted(size)
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise _AbsurdError(_too_large(f"{width} x {height}"))
    if long > MOST_OBLONG * short:
        raise _AbsurdError(
            f"has {width} x {height} pixels; images more than {MOST_OBLONG} times as long as wide are refused. Crop it "
            "or drop its entry"
        )


def _too_large(claimed: str) -> str:
    """The limit that holds; Pillow's own error is about twice as many."""
    return (
        f"claims {claimed} pixels; more than {Image.MAX_IMAGE_PIXELS} are refused. Make it smaller, or raise "
        "PIL.Image.MAX_IMAGE_PIXELS if you trust it"
    )
