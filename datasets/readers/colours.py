"""Masks whose colours are the classes."""

from collections.abc import Mapping

import numpy as np

from datasets.readers.labels import first_place, opened_mask
from datasets.sample import DataError

Colour = tuple[int, int, int]


def read_colour_png(path: str) -> np.ndarray:
    """Read the colours of an RGB PNG, or of a palette PNG through its palette.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        DataError: the PNG is missing, damaged or transparent, or has no colours.
    """
    with opened_mask(path) as image:
        mode, rgb = image.mode, np.asarray(image.convert("RGB"))
        opaque = mode != "RGBA" or image.getchannel("A").getextrema()[0] == 255
    if mode not in ("RGB", "P", "RGBA") or not opaque:
        kind = f"mode {mode}" + ("" if opaque else " with transparent pixels")
        raise DataError(
            f"{path}: a mask of {kind}; expected is an RGB PNG whose colours are classes. Export it like that"
        )
    return rgb


def pack(rgb: np.ndarray) -> np.ndarray:
    """Pack each colour of uint8 (..., 3) into one number, int32 (...): 65536 R + 256 G + B."""
    wide = rgb.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def remap_colours(rgb: np.ndarray, classes: Mapping[Colour, int], source: str, others: int | None = None) -> np.ndarray:
    """Replace colours by their classes; a colour must match exactly.

    Args:
        rgb: uint8 (H, W, 3) as stored.
        classes: colour -> class or 255.
        source: the file, for the message.
        others: what colours outside the table become; None makes them an error.

    Returns:
        uint8 (H, W), classes 0..K-1 and 255.

    Raises:
        DataError: a colour is outside the table; the message names its first pixel.
    """
    packed = pack(rgb)
    keys = pack(np.array(sorted(classes), np.uint8))
    places = np.searchsorted(keys, packed).clip(max=len(keys) - 1)
    mask = np.array([classes[colour] for colour in sorted(classes)], np.uint8)[places]
    wrong = keys[places] != packed
    if others is not None:
        mask[wrong] = others
    elif wrong.any():
        row, column = first_place(wrong)
        raise DataError(
            f"{source}: colour {rgb[row, column].tolist()} at row {row}, column {column} ({wrong.sum()} such pixels) "
            f"is none of the {len(classes)} colours of the classes. Correct the mask (no smoothing, no JPEG), or its "
            "table of colours"
        )
    return mask
