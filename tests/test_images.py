import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from tipsomaly.data.images import MAX_PIXELS, load_image, to_pixels
from tipsomaly.errors import ImageError

RED = (200, 30, 10)


def encoded(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def test_rgb_formats_decode_to_the_same_picture(tmp_path):
    picture = Image.new("RGB", (20, 10), RED)
    for format, tolerance in (("PNG", 0), ("BMP", 0), ("TIFF", 0), ("JPEG", 3), ("WEBP", 4), ("PPM", 0)):
        path = tmp_path / f"picture.{format.lower()}"
        path.write_bytes(encoded(picture, format))
        for source in (path, str(path), path.read_bytes()):
            loaded = load_image(source).image
            assert (loaded.mode, loaded.size) == ("RGB", (20, 10))
            assert np.abs(np.asarray(loaded).astype(int) - RED).max() <= tolerance, format


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "I", "F"])
def test_every_mode_becomes_rgb(mode):
    grey = {"I;16": 32896, "I": 32896, "F": 128 / 255}
    image = Image.new(mode, (6, 4), grey[mode]) if mode in grey else Image.new("L", (6, 4), 128).convert("RGB")
    image = image if mode in grey else image.convert("1", dither=0) if mode == "1" else _to_mode(image, mode)
    loaded = load_image(image).image
    assert loaded.mode == "RGB"
    expected = 255 if mode == "1" else 128
    assert np.abs(np.asarray(loaded).astype(int) - expected).max() <= 3


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    return image.quantize(4) if mode == "P" else image.convert(mode)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("value", [0, 257, 32896, 65535])
def test_sixteen_bit_files_are_scaled_not_clipped(format, value):
    data = encoded(Image.fromarray(np.full((4, 5), value, np.uint16)), format)
    assert np.asarray(load_image(data).image)[0, 0].tolist() == [value // 257] * 3


def test_alpha_is_laid_over_white():
    image = Image.new("RGBA", (2, 1))
    image.putpixel((0, 0), (0, 0, 0, 0))
    image.putpixel((1, 0), (*RED, 255))
    for mode in ("RGBA", "RGBa"):
        assert np.asarray(load_image(image.convert(mode)).image).tolist() == [[[255, 255, 255], list(RED)]]
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([0, 0, 0])
    assert load_image(encoded(palette, "PNG", transparency=0)).image.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = np.arange(24, dtype=np.uint8).reshape(4, 6)
    stored = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: np.rot90,
        7: lambda a: np.rot90(np.transpose(a), 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    np.testing.assert_array_equal(np.asarray(load_image(data).image)[..., 0], upright)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "TIFF", "PNG"])
def test_only_the_first_frame_of_an_animation_is_used_and_said(format):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    loaded = load_image(data)
    assert "first frame" in loaded.note
    assert loaded.image.getpixel((0, 0))[0] > 200
    assert load_image(encoded(frames[0], format)).note is None


def test_a_picture_that_is_handed_in_keeps_its_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "lime")]
    image = Image.open(io.BytesIO(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    for frame, pixel in ((1, (0, 0, 255)), (0, (255, 0, 0)), (2, (0, 255, 0))):
        image.seek(frame)
        loaded = load_image(image)
        assert loaded.image.getpixel((0, 0)) == pixel
        assert loaded.note == ("only the first frame is used" if frame == 0 else f"only frame {frame + 1} is used")
        assert image.tell() == frame


@pytest.mark.parametrize(
    "array",
    [
        np.full((3, 4), 128, np.uint8),
        np.full((3, 4, 1), 128, np.uint8),
        np.full((3, 4, 3), 128, np.uint8),
        np.full((3, 4, 3), 128 / 255, np.float32),
        np.full((3, 4), 128 / 255, np.float64),
        np.full((3, 4), 128 * 257, np.uint16),
        torch.full((3, 4, 3), 128, dtype=torch.uint8),
        torch.full((3, 4, 3), 128 / 255, requires_grad=True),
        torch.full((3, 4, 3), 128 / 255, dtype=torch.bfloat16),
        torch.full((3, 4, 3), 128 / 255, dtype=torch.float16),
    ],
)
def test_arrays(array):
    loaded = load_image(array).image
    assert loaded.size == (4, 3)
    assert np.asarray(loaded).ravel().tolist() == [128] * 36


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros(5, np.uint8), "expected shape"),
        (np.zeros((3, 4, 2), np.uint8), "expected shape"),
        (np.zeros((2, 3, 4, 3), np.uint8), "expected shape"),
        (np.zeros((0, 4), np.uint8), "no pixels"),
        (np.array([[0.5, np.nan]]), "NaN"),
        (np.array([[0.5, 2.0]]), r"floats must be in \[0, 1\]"),
        (np.zeros((3, 4), np.int64), "got int64"),
        (np.zeros((3, 4), "U1"), "got <U1"),
        (torch.zeros(3, 4).to_sparse(), "expected a dense one"),
        (torch.zeros(3, 4, device="meta"), "tensor: holds no pixels"),
        (torch.zeros(3, 4, dtype=torch.complex64), "got complex64"),
        (np.broadcast_to(np.uint8(0), (10**5, 10**4)), "megapixels"),
    ],
)
def test_odd_arrays_are_refused(array, message):
    with pytest.raises(ImageError, match=message):
        load_image(array)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "file is empty"),
        (b"hello", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (encoded(Image.effect_noise((60, 60), 90), "PNG")[:900], "damaged or truncated"),
        (encoded(Image.effect_noise((60, 60), 90), "JPEG")[:900], "damaged or truncated"),
        (encoded(Image.effect_noise((60, 60), 90), "TIFF")[:900], "damaged|not a picture"),
        (encoded(Image.effect_noise((60, 60), 90), "BMP")[:900], "damaged or truncated"),
        (encoded(Image.effect_noise((60, 60), 90).convert("RGB"), "WEBP")[:900], "damaged|not a picture"),
        (png_header(0, 5), "no pixels|damaged|not a picture"),
        (png_header(10001, 10000), "100 megapixels"),
        (png_header(2**31 - 1, 2**31 - 1), "100 megapixels"),
    ],
)
def test_broken_files_are_refused_in_one_line_that_names_them(tmp_path, content, message):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=message) as caught:
        load_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_large_picture_is_refused_from_its_header(tmp_path):
    """The file holds no pixels at all, so decoding it would fail with another message."""
    path = tmp_path / "large.png"
    path.write_bytes(png_header(MAX_PIXELS // 1000 + 1, 1000))
    with pytest.raises(ImageError, match="100 megapixels"):
        load_image(path)


def test_a_caller_may_take_fewer_pixels(tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(png_header(6000, 5000))
    with pytest.raises(ImageError, match="large.png: 6000 x 5000 is 30 megapixels, at most 25 are taken"):
        load_image(path, 25_000_000)


@pytest.mark.parametrize(
    ("format", "mode"),
    [("JPEG", "RGB"), ("JPEG", "L"), ("TIFF", "RGB"), ("TIFF", "I;16")]
    + [("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")],
)
def test_a_large_picture_is_reduced(format, mode):
    picture = Image.linear_gradient("L").resize((399, 200))
    picture = _to_mode(picture.convert("RGB"), mode) if mode != "I;16" else Image.fromarray(np.uint16(picture) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    content = encoded(picture, format, exif=exif)
    whole, loaded = load_image(content), load_image(content, enough=399 * 200 // 3)
    assert (whole.full_size, loaded.full_size) == (None, (200, 399))
    assert loaded.image.size == (100, 200) and loaded.image.mode == "RGB"
    assert loaded.note == "reduced from 200 x 399 to 100 x 200 pixels"
    expected = np.float32(whole.image)[:398].reshape(199, 2, 100, 2, 3).mean((1, 3))
    np.testing.assert_allclose(np.float32(loaded.image)[:199], expected, atol=2)
    assert load_image(content, enough=399 * 200).full_size is None


def test_a_jpeg_is_reduced_before_it_takes_memory():
    content = encoded(Image.new("L", (8000, 6000), 99), "JPEG")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "reduce", None)  # decoding alone
        loaded = load_image(content, enough=25_000_000)
    assert loaded.image.size == (4000, 3000) and loaded.image.getpixel((7, 7)) == (99, 99, 99)


def test_a_thread_of_pixels_is_refused(tmp_path):
    path = tmp_path / "long.png"
    path.write_bytes(png_header(65536, 1))
    for source in (path, np.zeros((65536, 1), np.uint8), Image.new("L", (1, 65536))):
        with pytest.raises(ImageError, match="a side of more than 65535 pixels"):
            load_image(source)
    assert load_image(np.zeros((1, 65535), np.uint8)).image.size == (65535, 1)


def test_sixteen_bits_are_rounded_to_eight():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    pixels = np.asarray(load_image(values).image)[..., 0]
    np.testing.assert_array_equal(pixels, np.round(values / 257))


def test_paths_that_are_no_files_are_refused(tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        load_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="not a file"):
        load_image(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="not a file"):
        load_image(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match=r"a\\x00b.png: (no such file|cannot be read)"):
        load_image("a\0b.png")
    with pytest.raises(ImageError, match=r"no such file|cannot be read"):
        load_image("x" * 5000)
    with pytest.raises(ImageError, match="expected a path"):
        load_image(7)
    with pytest.raises(ImageError, match=r"bad\\nname") as caught:
        load_image("bad\nname.png")
    assert "\n" not in str(caught.value)


def test_a_damaged_exif_block_does_not_matter():
    data = encoded(Image.new("RGB", (4, 4), RED), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\xff\xff")
    assert load_image(data).image.size == (4, 4)


def test_pixels_are_pils_bilinear_at_the_asked_size():
    image = Image.effect_noise((50, 40), 60).convert("RGB")
    pixels = to_pixels(image, (28, 42))
    assert pixels.shape == (3, 28, 42)
    assert pixels.dtype == torch.uint8
    np.testing.assert_array_equal(pixels.permute(1, 2, 0), np.asarray(image.resize((42, 28), Image.BILINEAR)))
