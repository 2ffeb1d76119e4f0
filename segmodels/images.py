"""Images as people have them, made RGB of 8 bits by the rules of the shards that models are trained on.

Grey and CMYK become RGB, 16 bits their upper 8, transparency is dropped. EXIF rotation is not applied: pixels count as
they are stored, because masks are drawn on them. A JPEG that is broken in its middle passes: its decoder fills the rest
with grey, and only warns on stderr.
"""

import io
import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from segmodels.files import FileError

FORMATS = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF",
           b"MM\0+": "TIFF", b"BM": "BMP", b"RIFF": "WebP"}  # fmt: skip
"""How the files begin that are read."""
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
MOST_PIXELS = 1 << 30
"""Of an image: OpenCV decodes no more."""
MOST_SIDE = 1_000_000
"""Of an image, pixels: libpng decodes no longer rows."""
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
"""Pillow's modes of images of 8 bits or fewer."""
DEEP = ("I;16", "I;16B", "I;16L", "I;16N")
"""Pillow's modes of images of 16 bits."""
ALLOWED = "a path, a PIL image, or an array uint8 or uint16 of (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"

Picture = str | os.PathLike[str] | Image.Image | np.ndarray
"""What is taken for an image."""


def as_rgb(picture: Picture) -> np.ndarray:
    """Any image as the models take it.

    Args:
        picture: a path; a PIL image, whose current frame counts; or an array, grey, RGB or RGBA, of 8 or 16 bits.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        FileError: a file that is missing, damaged, too large, of another format, or that holds several pictures.
        TypeError: something else than an image.
        ValueError: an array of another shape or type.
    """
    if isinstance(picture, str | os.PathLike):
        return read(Path(picture))
    if isinstance(picture, Image.Image):
        return of_pillow(picture)
    if isinstance(picture, np.ndarray):
        return of_array(picture)
    raise TypeError(f"an image is {ALLOWED}, not a {type(picture).__name__}")


def read(path: Path) -> np.ndarray:
    """An image file, uint8 (H, W, 3) RGB.

    Raises:
        FileError: as `decode`, or there is no such file.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}; correct the path") from None
    try:
        return decode(data)
    except FileError as error:
        raise FileError(f"{path}: {error}") from None


def decode(data: bytes, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """The bytes of a JPEG, PNG, TIFF, BMP or WebP file, decoded; the content decides, not a name.

    Args:
        data: the file's bytes.
        most_pixels: an image of more is refused by its header, before it takes memory.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        FileError: the bytes are of another format, damaged, too large, or hold several pictures.
    """
    kind = next((kind for begin, kind in FORMATS.items() if data.startswith(begin)), "")
    if not kind:
        begins = f"begins with {data[:8]!r}" if data else "the file is empty"
        names = ", ".join(dict.fromkeys(FORMATS.values()))
        raise FileError(f"no image that is read ({begins}); allowed are {names}. Convert the file, or fetch it again")
    check(data, kind, most_pixels)
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    if kind in ENDS:
        flags ^= cv2.IMREAD_ANYDEPTH  # the decoders of JPEG and PNG give the upper 8 of 16 bits themselves
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise FileError(f"damaged {kind} ({len(data)} bytes: {error.err}); fetch the file again") from None
    if pixels is None or str(pixels.dtype) not in ("uint8", "uint16"):
        raise FileError(f"a {kind} that does not decode: it is damaged, or has more than 16 bits, or other bands than "
                        "grey or RGB; convert the file to PNG or JPEG, or fetch it again")  # fmt: skip
    return pixels.astype(np.uint8, copy=False) if pixels.dtype == np.uint8 else (pixels // 256).astype(np.uint8)


def check(data: bytes, kind: str, most_pixels: int) -> None:
    """Refuse by its header, and where its end is missing by its pixels, what OpenCV would read in part or not at all.

    Raises:
        FileError: too many pixels, several pictures, or a file that is cut short.
    """
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # Pillow's own is lower than ours
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.height * image.width > most_pixels or max(image.size) > MOST_SIDE:
                raise FileError(
                    f"{image.width:,}x{image.height:,} pixels (width x height); allowed are {most_pixels:,} pixels, "
                    f"and sides of {MOST_SIDE:,}. Cut the image into tiles"
                )
            if (count := getattr(image, "n_frames", 1)) > 1 and kind not in ENDS:
                raise FileError(f"the file holds {count} pictures; expected is one. Save each as a separate file")
            if not data.endswith(ENDS.get(kind, b"\0no end")):
                image.load()
    except FileError:
        raise
    except UnidentifiedImageError:  # Pillow reads no TIFF with colours of 16 bits, OpenCV does
        if kind != "TIFF":
            raise FileError(f"damaged {kind} ({len(data)} bytes); fetch the file again") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise FileError(f"truncated or damaged {kind} ({len(data)} bytes, {error}); fetch the file again") from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def of_pillow(image: Image.Image) -> np.ndarray:
    """A PIL image as uint8 (H, W, 3) RGB: what it holds now, EXIF rotation not applied.

    Raises:
        ValueError: floating point or 32 bits.
    """
    if image.mode in DEEP or image.mode == "I":
        return of_array(np.asarray(image))
    if image.mode not in MODES:
        raise ValueError(
            f"a PIL image of mode {image.mode}; allowed are {', '.join((*MODES, *DEEP))}. Convert it first"
        )
    return np.array(image.convert("RGB"))


def of_array(pixels: np.ndarray) -> np.ndarray:
    """An array as uint8 (H, W, 3) RGB, of 16 bits the upper 8.

    Raises:
        ValueError: another shape or type, or no pixel.
    """
    if pixels.dtype == np.int32 and pixels.ndim == 2 and 0 <= pixels.min(initial=0) <= pixels.max(initial=0) < 1 << 16:
        pixels = pixels.astype(np.uint16)  # so Pillow holds grey PNGs of 16 bits
    shape = pixels.shape
    bands = 1 if len(shape) == 2 else shape[2] if len(shape) == 3 else 0
    if pixels.dtype not in (np.uint8, np.uint16) or bands not in (1, 3, 4) or not pixels.size:
        raise ValueError(f"an array {pixels.dtype} of {shape}; an image is {ALLOWED}. Scale and convert it first")
    eight = pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
    if bands == 1:
        return np.repeat(eight.reshape(*shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(eight[..., :3])
