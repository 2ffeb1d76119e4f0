"""Images that are neither JPEG nor PNG: their pixels as a PNG, which training reads."""

import io

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from datasets.damage import hearing
from datasets.readers.bands import of_bytes
from datasets.sample import DAMAGED, DataError, check_size

READ = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".webp")
"""Suffixes of the images of the user's own folder; the content decides how a file is read."""
BEGIN = {b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF", b"BM": "BMP", b"RIFF": "WebP"}
"""How the files that become PNGs begin."""
CURE = "convert the file to PNG or JPEG, or fetch it again"


def as_png(data: bytes) -> bytes:
    """A lossless PNG of the pixels as `decode_image` would give them: RGB, 8 bits, EXIF rotation not applied.

    Args:
        data: a file's bytes.

    Raises:
        DataError: another format, damaged, too large, several pictures in one file, or more bands than a picture has.
    """
    kind = next((kind for begin, kind in BEGIN.items() if data.startswith(begin)), "")
    if not kind:
        begins = f"begins with {data[:8]!r}" if data else "the file is empty"
        raise DataError(f"neither JPEG nor PNG, TIFF, BMP or WebP ({begins}); {CURE}", DAMAGED)
    _check_one_picture(data, kind)
    with hearing():
        pixels = _decoded(data)
    if pixels is None:
        raise DataError(f"a {kind} that does not decode: {of_bytes(data)}it is damaged, or has more than 16 bits, or "
                        f"other bands than grey or RGB; {CURE}, with three bands of 8 bits", DAMAGED)  # fmt: skip
    return cv2.imencode(".png", pixels)[1].tobytes()


def _check_one_picture(data: bytes, kind: str) -> None:
    """Refuse what OpenCV would read in part and say nothing: several pictures, or a file that is cut."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            check_size(image.height, image.width)
            if (count := getattr(image, "n_frames", 1)) > 1:
                raise DataError(f"the file holds {count} pictures; expected is one. Save each as a separate file")
            image.load()
    except UnidentifiedImageError:  # Pillow reads no colours of 16 bits, OpenCV does
        return
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"damaged {kind} ({len(data)} bytes, {error}); {CURE}", DAMAGED) from error


def _decoded(data: bytes) -> np.ndarray | None:
    """BGR uint8 (H, W, 3), the upper 8 bits of 16; None for what OpenCV does not read."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None
    if pixels is None or pixels.dtype not in (np.uint8, np.uint16):
        return None
    return pixels.astype(np.uint8) if pixels.dtype == np.uint8 else (pixels // 256).astype(np.uint8)
