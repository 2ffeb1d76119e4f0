"""What is taken for an image, and what is refused before it takes memory."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from segmodels.files import FileError
from segmodels.images import as_rgb, decode

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
DEEP = np.random.default_rng(1).integers(0, 1 << 16, (5, 7), np.uint16)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_arrays_of_any_depth_and_bands_become_rgb():
    grey, alpha = RGB[..., 0], np.dstack([RGB, np.arange(35, dtype=np.uint8).reshape(5, 7)])
    deep = np.dstack([DEEP, DEEP, DEEP])
    for given, wanted in [(RGB, RGB), (grey, np.dstack([grey] * 3)), (grey[..., None], np.dstack([grey] * 3)),
                          (alpha, RGB), (DEEP, np.dstack([DEEP >> 8] * 3)), (deep, deep >> 8)]:  # fmt: skip
        found = as_rgb(given)
        assert (found.dtype, found.shape) == (np.uint8, (5, 7, 3))
        np.testing.assert_array_equal(found, wanted)


def test_pillow_images_of_all_modes_become_rgb():
    palette = Image.fromarray(RGB).quantize(8)
    assert np.array_equal(as_rgb(palette), np.asarray(palette.convert("RGB")))
    alpha = Image.fromarray(np.dstack([RGB, np.full((5, 7), 9, np.uint8)]))
    assert np.array_equal(as_rgb(alpha), RGB)
    assert np.array_equal(as_rgb(Image.fromarray(DEEP)), np.dstack([DEEP >> 8] * 3))
    assert np.array_equal(as_rgb(Image.fromarray(DEEP.astype(np.int32))), np.dstack([DEEP >> 8] * 3))
    assert as_rgb(Image.fromarray(RGB).convert("CMYK")).shape == (5, 7, 3)
    with pytest.raises(ValueError, match="mode F"):
        as_rgb(Image.fromarray(DEEP.astype(np.float32)))


@pytest.mark.parametrize("given", [RGB / 255, RGB > 3, RGB[None], RGB[..., :2], RGB[:0], DEEP.astype(np.int32) - 70000])
def test_other_arrays_are_refused_with_what_is_allowed(given):
    with pytest.raises(ValueError, match="an image is a path, a PIL image, or an array uint8 or uint16"):
        as_rgb(given)


def test_what_is_no_image_is_refused():
    with pytest.raises(TypeError, match="not a bytes"):
        as_rgb(b"x")


def test_exif_rotation_is_not_applied_by_any_way(tmp_path):
    picture = Image.fromarray(RGB)
    exif = picture.getexif()
    exif[0x0112] = 6  # turn by a quarter
    picture.save(tmp_path / "x.png", exif=exif)
    with Image.open(tmp_path / "x.png") as opened:
        assert opened.getexif()[0x0112] == 6
        for given in (tmp_path / "x.png", str(tmp_path / "x.png"), opened):
            np.testing.assert_array_equal(as_rgb(given), RGB)


def bomb(width, height):
    """A PNG that says so many pixels in its header, in 70 bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("data", "why"), [
    (b"", "the file is empty"),
    (b"<!DOCTYPE html><html>", r"begins with b'<!DOCTYP'.*allowed are JPEG, PNG, TIFF, BMP, WebP"),
    (saved(Image.fromarray(RGB), "GIF", save_all=True, append_images=[Image.fromarray(RGB[::-1])]), "GIF8"),
    (saved(Image.fromarray(RGB), "TIFF", save_all=True, append_images=[Image.fromarray(RGB)]), "holds 2 pictures"),
    (bomb(60_000, 60_000), r"60,000x60,000 pixels .*allowed are 1,073,741,824 pixels"),
    (bomb(2_000_000, 1), "sides of 1,000,000"),
    (saved(Image.fromarray(RGB), "PNG")[:-30], "truncated or damaged PNG"),
    (saved(Image.fromarray(RGB), "JPEG")[:-150], "truncated or damaged JPEG"),
    (saved(Image.fromarray(RGB), "BMP")[:-30], "truncated or damaged BMP"),
], ids=lambda value: value[:12] if isinstance(value, str) else "")  # fmt: skip
def test_bad_files_are_refused_with_a_reason(data, why, tmp_path):
    (tmp_path / "x.jpg").write_bytes(data)
    with pytest.raises(FileError, match=rf"x\.jpg: .*{why}"):
        as_rgb(tmp_path / "x.jpg")


def test_a_missing_file_and_a_smaller_limit_are_named(tmp_path):
    with pytest.raises(FileError, match=r"none\.jpg: No such file"):
        as_rgb(tmp_path / "none.jpg")
    with pytest.raises(FileError, match=r"7x5 pixels .*allowed are 34 pixels"):
        decode(saved(Image.fromarray(RGB), "PNG"), most_pixels=34)
    assert Image.MAX_IMAGE_PIXELS is None or Image.MAX_IMAGE_PIXELS > 0


def test_one_pixel_is_an_image():
    np.testing.assert_array_equal(decode(saved(Image.fromarray(RGB[:1, :1]), "PNG")), RGB[:1, :1])
