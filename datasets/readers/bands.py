"""Images of satellites and microscopes: how many bands and bits they have, from their headers; what is not taken."""

import io
import os
import struct
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import cv2
from PIL import TiffImagePlugin

from datasets.sample import PNG, DataError
from datasets.text import named

BITS, BANDS, KIND = 258, 277, 339
"""TIFF's tags."""
KINDS = {2: " signed", 3: " floating point"}
PNG_BANDS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
"""PNG's kinds of colour -> values of a pixel."""
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
CURE = "choose three bands and 8 bits, such as: gdal_translate -b 3 -b 2 -b 1 -ot Byte -scale IN.tif OUT.tif"
DEEP_CURE = "gdal_translate -ot Byte -scale LOW HIGH 0 255 IN OUT, with the same LOW and HIGH for all images"


@dataclass(frozen=True)
class Bands:
    """How an image stores its pixels.

    Args:
        count: values of a pixel.
        bits: of a value.
        kind: "", " signed" or " floating point".
    """

    count: int
    bits: int
    kind: str = ""

    def __str__(self) -> str:
        return f"{self.count} band{'s' * (self.count > 1)} of {self.bits} bits{self.kind}"


def bands_of(stream: BinaryIO) -> Bands | None:
    """The bands of a PNG or TIFF, from its header; None for all other files, and for damaged ones."""
    head = stream.read(32)
    if head.startswith(PNG):
        return Bands(PNG_BANDS.get(head[25], 3), head[24]) if len(head) == 32 else None
    if not head.startswith(TIFF):
        return None
    try:
        page = TiffImagePlugin.ImageFileDirectory_v2(head[:16] if b"+" in head[:4] else head[:8])
        stream.seek(page.next)
        with warnings.catch_warnings(action="ignore"):  # a damaged file is reported where it is decoded
            page.load(stream)
        if BITS not in page and BANDS not in page:
            return None
        bits, kinds = page.get(BITS, (1,)), page.get(KIND, (1,))
        return Bands(int(page.get(BANDS, 1)), max(bits), KINDS.get(max(kinds), ""))
    except (OSError, SyntaxError, struct.error, ValueError, TypeError, KeyError, IndexError):
        return None


def of_bytes(data: bytes) -> str:
    """What the bands of a file are, for a message; "" where they are not known."""
    found = bands_of(io.BytesIO(data))
    return f"it has {found}; " if found else ""


def check_bands(source: Path, paths: Iterable[str], refuse: bool = True) -> list[str]:
    """What of the images is not taken: a line per kind.

    Args:
        source: the folder, for messages.
        paths: of the images.
        refuse: whether images that cannot be read at all are an error here; they are damaged rows where not.

    Raises:
        DataError: an image is neither grey nor RGB, or has more than 16 bits; the message names up to ten.
    """
    wrong: list[str] = []
    deep: list[str] = []
    fourth: list[str] = []
    for path in paths:
        with open(path, "rb") as stream:
            found = bands_of(stream)
        if found is None:
            continue
        name, is_tiff = os.path.relpath(path, source), not path.lower().endswith(".png")
        if is_tiff and (found.count not in (1, 3, 4) or found.bits > 16 or found.kind):
            wrong.append(f"{name} has {found}")
        elif found.bits == 16:
            deep.append(path)
        if found.count == 4:
            fourth.append(name)
    if wrong and refuse:
        raise DataError(f"{source}: {len(wrong):,} image(s) are no pictures in grey or RGB of 8 or 16 bits: "
                        f"{named(wrong)}. Networks here see three bands of 8 bits: {CURE}")  # fmt: skip
    lines = [f"not taken, the fourth band of {len(fourth):,} image(s): {named(fourth, 3)}; bands 1, 2 and 3 are read "
             "as red, green and blue"] if fourth else []  # fmt: skip
    return lines + (_deep(source, deep) if deep else [])


def _deep(source: Path, paths: list[str]) -> list[str]:
    """The line about images of 16 bits: their lower 8 bits are lost, measured on the first that reads."""
    measured, names = "", [os.path.relpath(path, source) for path in paths]
    for path, name in zip(paths[:3], names, strict=False):
        pixels = cv2.imread(path, cv2.IMREAD_UNCHANGED)
        if pixels is not None:
            low, high = int(pixels.min()), int(pixels.max())
            measured = f". {name} holds {low} to {high}, so it becomes {low // 256} to {high // 256}"
            break
    return [f"WARNING: not taken, the lower 8 of the 16 bits of {len(paths):,} image(s): {named(names, 3)}{measured}. "
            f"Where that is dark or flat, scale them first: {DEEP_CURE}"]  # fmt: skip
