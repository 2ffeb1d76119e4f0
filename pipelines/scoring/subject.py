"""What is explained: an image, its labels if it has any, the part that the head sees, and the pixels asked for."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from datasets.sample import IGNORE, DataError, decode_image, decode_mask
from datasets.shards import Shards
from pipelines.base.errors import InputError
from pipelines.runs.checkpoint import Checkpoint

SHOWN = 3  # pixels that are chosen where none are given
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Subject:
    """An image to explain.

    Attributes:
        name: the row's id, or the file's name.
        image: RGB uint8 (H, W, 3).
        mask: uint8 (H, W), or None without labels.
        seen: whether the checkpoint was trained on it.
    """

    name: str
    image: np.ndarray
    mask: np.ndarray | None = None
    seen: bool = False


def from_file(path: Path) -> Subject:
    """An image file, which has no labels.

    Raises:
        InputError: no JPEG or PNG, or a damaged one.
    """
    try:
        return Subject(path.name, decode_image(path.read_bytes()))
    except DataError as error:
        raise InputError(f"{path}: {error}") from None


def from_row(shards: Shards, row: str | None, path: Path, checkpoint: Checkpoint) -> Subject:
    """A row of shards, with its labels where the split has any.

    Args:
        shards: of a split.
        row: its id.
        path: of the checkpoint, for messages.
        checkpoint: what explains it.

    Raises:
        InputError: no such row, or labels of other classes.
        DataError: the row is damaged.
    """
    number, manifest = row_number(shards, row), shards.manifest
    if manifest.labelled and list(manifest.classes) != list(checkpoint.classes):
        raise InputError(
            f"{path} knows {len(checkpoint.classes)} classes {list(checkpoint.classes[:4])}…, {shards.uri} has "
            f"{len(manifest.classes)} {list(manifest.classes[:4])}…: they must be the same, in this order"
        )
    image, mask = shards.encoded(number)
    digest = np.array([int(shards.sha256[number][:16], 16)], np.uint64).view(np.int64)
    return Subject(
        shards.ids[number], decode_image(image), None if mask is None else decode_mask(mask),
        bool(np.isin(digest, checkpoint.seen).any()),
    )  # fmt: skip


def row_number(shards: Shards, row: str | None) -> int:
    """The number of a row from its id.

    Raises:
        InputError: no id, or one that the shards do not have.
    """
    ids = shards.ids
    if row in ids:
        return ids.index(row)
    near = difflib.get_close_matches(row or "", ids, 5, 0.5) or ids[:5]
    what = f"has no row {row!r} among its {len(ids)}" if row else f"holds {len(ids)} rows; name one with --row ID"
    raise InputError(f"{shards.uri} {what}; {'the nearest' if row else 'its first'} ids: {', '.join(near)}")


def view(size: Sequence[int], window: tuple[int, int] | None, pixels: Sequence[tuple[int, int]]) -> Box:
    """The part that the head is shown: (top, left, height, width), in pixels.

    The whole image or, of a head bound to its crop, one such crop around the pixels, kept on the image where it fits.

    Args:
        size: (H, W) of the image.
        window: (h, w) of the crop, or None.
        pixels: (x, y) of each.

    Raises:
        InputError: the pixels do not fit into one crop.
    """
    if window is None:
        return 0, 0, int(size[0]), int(size[1])
    corner = []
    for axis, (side, extent) in enumerate(zip(size, window, strict=True)):
        places = [pixel[1 - axis] for pixel in pixels] or [side // 2]
        if max(places) - min(places) >= extent:
            raise InputError(
                f"--pixel: {list(pixels)} are further apart than {window[0]}x{window[1]} pixels, the training crop to "
                "which this head is bound and of which one is explained; allowed: pixels within one. Ask twice"
            )
        middle = (min(places) + max(places)) // 2
        corner.append(max(0, min(middle - extent // 2, side - extent)))
    return corner[0], corner[1], *window


def cut(pixels: np.ndarray, box: Box, fill: int | Sequence[float]) -> np.ndarray:
    """The part of an image or mask, filled below and on the right where the box leaves it."""
    top, left, height, width = box
    part = pixels[top : top + height, left : left + width]
    if part.shape[:2] == (height, width):
        return np.ascontiguousarray(part)
    canvas = np.empty((height, width, *pixels.shape[2:]), pixels.dtype)
    canvas[:] = np.round(fill).astype(pixels.dtype)
    canvas[: part.shape[0], : part.shape[1]] = part
    return canvas


def check_pixels(flat: Sequence[int], size: Sequence[int]) -> list[tuple[int, int]]:
    """(x, y) of each pixel from X Y X Y ….

    Raises:
        InputError: an odd number of values, or a pixel outside of the image.
    """
    if len(flat) % 2:
        raise InputError(f"--pixel: {len(flat)} values {list(flat)}; allowed: pairs X Y, column and row from 0")
    pairs = list(zip(flat[::2], flat[1::2], strict=True))
    for x, y in pairs:
        if not (0 <= x < size[1] and 0 <= y < size[0]):
            raise InputError(
                f"--pixel {x} {y}: outside of the image, {size[1]}x{size[0]} pixels (width x height); allowed: "
                f"0 to {size[1] - 1} and 0 to {size[0] - 1}"
            )
    return pairs


def choose_pixels(mask: np.ndarray, most: int = SHOWN) -> list[tuple[int, int]]:
    """(x, y) of a pixel deep inside of each of the largest regions, of unlike classes.

    Args:
        mask: uint8 (H, W), labels or, without any, a prediction.
        most: pixels at most.
    """
    counts = np.bincount(mask[mask != IGNORE].ravel(), minlength=1)
    chosen = []
    for label in np.argsort(-counts, kind="stable")[:most]:
        if counts[label]:
            inside = cv2.distanceTransform(np.pad(mask == label, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
            row, column = np.unravel_index(int(inside.argmax()), inside.shape)
            chosen.append((int(column), int(row)))
    return chosen or [(mask.shape[1] // 2, mask.shape[0] // 2)]
