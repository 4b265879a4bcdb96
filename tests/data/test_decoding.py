"""Images of every mode become RGB; what cannot be decoded, or is absurd, is named and refused."""

import io
import shutil
import struct
import zlib

import pytest
from PIL import Image

from tests.data.test_images import picture
from upop.data.decoding import FORMATS, load_image, opened


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    image = load_image(picture(tmp_path / "a.png", mode=mode))
    assert (image.mode, image.size) == ("RGB", (8, 6))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_photographs_are_decoded_whatever_they_are_called(tmp_path, kind):
    Image.new("RGB", (8, 6), (200, 200, 200)).save(tmp_path / "a.jpg", kind)
    assert kind in FORMATS
    assert load_image(tmp_path / "a.jpg").getpixel((1, 1)) == (200, 200, 200)


@pytest.mark.parametrize("content", [b"", b"not an image", "half"])
def test_a_broken_image_is_named(tmp_path, content):
    if content == "half":
        memory = io.BytesIO()
        Image.effect_noise((64, 64), 60).save(memory, "JPEG")
        content = memory.getvalue()[: len(memory.getvalue()) // 2]
    (tmp_path / "b.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=r"image '.*b\.jpg' cannot be decoded: .*download it again"):
        load_image(tmp_path / "b.jpg")
    with pytest.raises(FileNotFoundError, match=r"no image at '.*c\.jpg'"):
        load_image(tmp_path / "c.jpg")


def test_no_program_is_started(tmp_path, monkeypatch):
    """Pillow hands EPS to Ghostscript, under whatever name it comes."""
    Image.new("RGB", (8, 6)).save(tmp_path / "a.eps", "EPS")
    shutil.copy(tmp_path / "a.eps", tmp_path / "a.jpg")
    started = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *given, **_: started.append(given))
    with pytest.raises(ValueError, match=r"a\.jpg' cannot be decoded: it is none of \['JPEG', .*convert it or drop"):
        load_image(tmp_path / "a.jpg")
    assert not started


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("limit", "claimed"), [(40, "8 x 6"), (20, "48")]
)  # Pillow itself raises above twice the limit
def test_too_many_pixels_are_refused(tmp_path, monkeypatch, limit, claimed):
    path = picture(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(
        ValueError, match=rf"a\.png' claims {claimed} pixels; more than {limit} are refused\. Make it sm"
    ):
        load_image(path)


def claiming(path, width, height):
    """A small PNG whose header tells of other sizes."""
    content = picture(path).read_bytes()
    header = b"IHDR" + struct.pack(">II", width, height) + content[24:29]
    path.write_bytes(content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:])
    return path


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_bomb_is_refused_by_its_header(tmp_path, side):
    claimed = r"10000 x 10000" if side == 10_000 else "3600000000"
    with pytest.raises(ValueError, match=rf"a\.png' claims {claimed} pixels; more than 89478485 are refused"):
        load_image(claiming(tmp_path / "a.png", side, side))


@pytest.mark.parametrize("size", [(1, 201), (403, 2)])
def test_too_long_images_are_refused(tmp_path, size):
    text = (
        rf"a\.png' has {size[0]} x {size[1]} pixels; images more than 200 times as long as wide are refused\. Crop it"
    )
    with pytest.raises(ValueError, match=text):
        load_image(picture(tmp_path / "a.png", size))
    assert load_image(picture(tmp_path / "b.png", (200, 1))).size == (200, 1)


def test_the_header_alone_is_read(tmp_path):
    with opened(claiming(tmp_path / "a.png", 900, 700)) as image:
        assert image.size == (900, 700)
    with pytest.raises(ValueError, match=r"a\.png' cannot be decoded"):
        load_image(tmp_path / "a.png")
