"""What a reader gives: an encoded image and its mask, and the benchmark that they belong to."""

import io
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache

import cv2
import numpy as np
import pyarrow as pa
from PIL import Image

IGNORE = 255
"""The mask value that no loss and no score counts: the same in every benchmark, whatever the source uses."""

MASK_HEAD = struct.Struct("<III")
"""What precedes a mask's compressed pixels: CRC-32 of all that follows it, height, width; little-endian."""
MASK_CODEC = pa.Codec("lz4_raw", compression_level=6)
"""Masks are long runs of one class, written once, read often: LZ4 takes a tenth of PNG's time, 1.5 times its bytes."""

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
"""How the files begin."""
END_MARKERS = {JPEG: b"\xff\xd9", PNG: b"IEND\xaeB`\x82"}

MOST_PIXELS = 1 << 30
"""Of an image: OpenCV decodes no more."""
MOST_SIDE = 1_000_000
"""Of an image, pixels: libpng decodes no longer rows."""
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is lower; `check_size` has ours

DAMAGED, ABSENT = "damaged", "absent"
"""Kinds of a DataError: a file that does not read, whose row may be left out; a split of which nothing is there."""


class DataError(ValueError):
    """A fault that the owner of the data can cure; the message says what is wrong, where, and how to cure it.

    Args:
        message: the text.
        kind: DAMAGED, ABSENT, or "" for all other faults.
    """

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Item:
    """One row that is still on disk.

    Args:
        id: unique within its split.
        image: absolute path of an image file.
        label: what the benchmark's `read` needs (a path, run lengths), picklable; None in a split without labels.
        bytes: of the image, where it is only a part of that file; 0 where it is the file.
    """

    id: str
    image: str
    label: object
    bytes: int = 0


@dataclass(frozen=True)
class Layers:
    """A label of several masks, one per class.

    Args:
        masks: class or 255, and the path of its mask.
        unlabelled: the class of pixels that are in no mask, or 255.
    """

    masks: tuple[tuple[int, str], ...]
    unlabelled: int


@dataclass(frozen=True)
class Tile:
    """The label of a row that is a part of an image.

    Args:
        item: the whole image.
        box: top, left, bottom and right, pixels.
    """

    item: Item
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Cell:
    """The label of a row whose image and mask are in a row of a table, the item's file.

    Args:
        group: number of the table's row group.
        row: number of the row in it.
        height: of the image, pixels.
        width: of the image, pixels.
    """

    group: int
    row: int
    height: int
    width: int


@dataclass(frozen=True)
class Segment:
    """One object, or one region of stuff, of a benchmark that names them.

    Args:
        number: class 0..K-1 of the benchmark.
        crowd: whether it is several objects under one outline.
        box: x, y of the upper left corner, width, height; pixels, as published.
        rle: COCO's compressed run lengths of its mask, which has the image's size.
    """

    number: int
    crowd: bool
    box: tuple[float, float, float, float]
    rle: bytes


@dataclass(frozen=True)
class Sample:
    """One row in memory.

    Args:
        id: the item's.
        image: the original file's bytes where it is JPEG or PNG; other formats as a PNG of their pixels.
        mask: uint8 (H, W), classes 0..K-1 and 255; None in a split without labels.
        segments: its objects; None in a benchmark that has only masks.
    """

    id: str
    image: bytes
    mask: np.ndarray | None
    segments: tuple[Segment, ...] | None = None


@dataclass(frozen=True)
class Benchmark:
    """A data set in its original layout.

    Args:
        name: its key in the catalog.
        classes: K names; the mask's value is the position.
        palette: K colours, RGB 0..255.
        splits: rows of each split as published, or None where nothing is published.
        tree: a drawing of the expected folder, with counts.
        index: split -> rows, always in the same order; raises DataError with `tree` and the missing files.
        read: item -> sample, picklable; raises DataError that names the file at fault.
        home: where the release is published, for a person to fetch it; "" for the user's own folder.
        flip_pairs: classes that change places when an image is flipped left to right (left arm, right arm).
        listed: images of each split that the release lists, where the reader keeps only some of them.
        ignored: which labels become 255, for a person; "" where the release says so.
        notes: what the reader decided for itself, and what of the source it does not use; a line each.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    splits: dict[str, int | None]
    tree: str
    index: Callable[[str], list[Item]]
    read: Callable[[Item], Sample]
    home: str
    flip_pairs: tuple[tuple[int, int], ...] = ()
    listed: dict[str, int] = field(default_factory=dict)
    ignored: str = ""
    notes: tuple[str, ...] = ()


class Rows(list[Item]):
    """The rows of a split that are a choice from those which the release lists.

    Args:
        items: the rows.
        listed: how many the source lists.
    """

    def __init__(self, items: Iterable[Item], listed: int) -> None:
        super().__init__(items)
        self.listed = listed


def decode_image(data: bytes) -> np.ndarray:
    """Decode a JPEG or PNG file; grey and CMYK become RGB, 16 bits their upper 8, transparency is dropped.

    EXIF rotation is not applied: masks are drawn on the pixels as stored.

    Args:
        data: the file's bytes.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        DataError: the bytes are in another format, cut short or damaged.
    """
    _check_whole(data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise DataError(f"damaged image ({len(data)} bytes: {error.err}); fetch the file again", DAMAGED) from error
    if image is None:
        raise DataError(f"damaged image ({len(data)} bytes do not decode); fetch the file again", DAMAGED)
    return image


def image_size(data: bytes) -> tuple[int, int]:
    """Height and width in pixels as stored, read from only the file's header.

    Raises:
        DataError: the header does not read.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"damaged image ({len(data)} bytes, {error}); fetch the file again", DAMAGED) from error


def check_size(height: int, width: int) -> None:
    """Refuse an image that is too large for the decoders, before they try.

    Raises:
        DataError: more than MOST_PIXELS, or a side longer than MOST_SIDE.
    """
    if height * width > MOST_PIXELS or max(height, width) > MOST_SIDE:
        raise DataError(
            f"{width:,}x{height:,} pixels (width x height); allowed are {MOST_PIXELS:,} pixels, and sides of "
            f"{MOST_SIDE:,}. Cut image and mask into parts first (gdal_retile.py -ps 16384 16384); what fits is cut "
            "further by --tile N"
        )


def encode_mask(mask: np.ndarray) -> bytes:
    """Encode a mask, bit for bit: `MASK_HEAD`, then the mask's rows as one block of LZ4.

    Args:
        mask: uint8 (H, W).

    Raises:
        DataError: the array has another type or shape.
    """
    if mask.dtype != np.uint8 or mask.ndim != 2:
        raise DataError(f"a mask is uint8 (H, W), not {mask.dtype} {mask.shape}; convert it first")
    block = MASK_CODEC.compress(np.ascontiguousarray(mask).reshape(-1), asbytes=True)
    checked = MASK_HEAD.pack(0, *mask.shape)[4:] + block
    return zlib.crc32(checked).to_bytes(4, "little") + checked


def decode_mask(data: bytes) -> np.ndarray:
    """Decode what `encode_mask` wrote.

    Returns:
        uint8 (H, W), read-only.

    Raises:
        DataError: the bytes are cut short or damaged.
    """
    whole = memoryview(data)
    if len(data) <= MASK_HEAD.size or zlib.crc32(whole[4:]) != MASK_HEAD.unpack_from(data)[0]:
        raise DataError(f"damaged mask ({len(data)} bytes, not those of its checksum); prepare the shards again")
    _, height, width = MASK_HEAD.unpack_from(data)
    pixels = MASK_CODEC.decompress(whole[MASK_HEAD.size :], height * width)
    return np.frombuffer(pixels, np.uint8).reshape(height, width)


@lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """Let this process reuse the memory of dropped images instead of returning it to the system each time.

    glibc makes the size of a freed block its threshold, up to 32 MiB, and keeps twice as much. Where page faults are
    slow (virtual machines), an image's 200 pages take as long as its decoding. Without glibc it does nothing.
    """
    np.empty((32 << 20) - 8192, np.uint8)


def _check_whole(data: bytes) -> None:
    """Refuse a file that is cut short: OpenCV may fill the missing rows with grey and say nothing."""
    ends = [end for start, end in END_MARKERS.items() if data.startswith(start)]
    if not ends:
        what = f"begins with {data[:8]!r}" if data else "the file is empty"
        raise DataError(f"neither JPEG nor PNG ({what}); convert the file, or fetch it again", DAMAGED)
    if data.endswith(ends[0]):
        return
    # Some cameras append bytes after the end marker, and a thumbnail has its own marker: only a decoder can tell.
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"truncated image ({len(data)} bytes, {error}); fetch the file again", DAMAGED) from error
