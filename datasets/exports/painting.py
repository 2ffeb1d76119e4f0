"""From outlines to masks: the one rule of which pixels belong to an outline, and which of two outlines is seen.

A pixel belongs to an outline where its centre lies inside. Corners are rounded to a fifth of a pixel: it is COCO's own
rule, drawn by pycocotools. (0, 0) is the upper left corner of the upper left pixel, so the box (1, 1) to (3, 4) is
columns 1 and 2 of rows 1 to 3. Where outlines overlap, the one of fewer pixels is seen; of two equal ones the later.
"""

import cv2
import numpy as np
from pycocotools import mask as rle_api

from datasets.exports.records import Shape
from datasets.readers.coco_files import OUTSIDE, outline_fault
from datasets.readers.labels import read_pair
from datasets.sample import IGNORE, DataError, Item, Sample

Painted = tuple[int, bool, bytes]
"""Class or 255, crowd or not, COCO's compressed run lengths."""
Drawing = tuple[int, int, int, tuple[Painted, ...]]
"""Height, width, what is unlabelled, and what to paint in this order."""
ORDER = "where labels overlap, the one of fewer pixels is seen; of two equal ones the later"


def run_lengths(shape: Shape, height: int, width: int, outside: bool, line_width: int) -> tuple[bytes, bool]:
    """The pixels of a shape, as compressed run lengths; and whether it reached beyond the image, so that it was cut.

    Args:
        shape: in pixels.
        height: of the image.
        width: of the image.
        outside: whether a shape may reach beyond the image.
        line_width: pixels; 0 refuses lines.

    Raises:
        DataError: the shape cannot be one of this image; the message does not name the file.
    """
    if shape.rle is not None:
        if fault := outline_fault(shape.rle, height, width):
            raise DataError(f"{shape.at}: {fault}. Export the annotations again")
        counts = shape.rle["counts"]
        listed = rle_api.frPyObjects(shape.rle, height, width)["counts"] if isinstance(counts, list) else None
        return listed or str(counts).encode(), False
    beyond = _beyond(shape, height, width, outside)
    if shape.rings:
        rle = _polygon(shape.rings, height, width)
        if shape.holes:
            inside, hole = (rle_api.decode(part) != 0 for part in (rle, _polygon(shape.holes, height, width)))
            return _encoded(inside & ~hole), beyond
        return rle["counts"], beyond
    canvas = np.zeros((height, width), bool)
    if shape.bits:
        _put(canvas, *shape.bits)
    elif shape.circle:
        x, y, radius = shape.circle
        rows, columns = np.ogrid[:height, :width]
        canvas = (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 <= radius**2
    elif shape.line is not None:
        canvas = _drawn_line(shape, height, width, line_width)
    return _encoded(canvas), beyond


def _polygon(rings: tuple[np.ndarray, ...], height: int, width: int) -> dict[str, bytes]:
    return rle_api.merge(rle_api.frPyObjects([ring.reshape(-1).tolist() for ring in rings], height, width))


def _encoded(mask: np.ndarray) -> bytes:
    return rle_api.encode(np.asfortranarray(mask, np.uint8))["counts"]


def _put(canvas: np.ndarray, bits: np.ndarray, left: int, top: int) -> None:
    """Lay bits onto a canvas; what is beyond its edges is cut."""
    height, width = canvas.shape
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + bits.shape[0], height), min(left + bits.shape[1], width)
    if y0 < y1 and x0 < x1:
        canvas[y0:y1, x0:x1] |= bits[y0 - top : y1 - top, x0 - left : x1 - left]


def _drawn_line(shape: Shape, height: int, width: int, line_width: int) -> np.ndarray:
    if not line_width:
        raise DataError(f"{shape.at}: a line encloses no pixel. Draw lines so many pixels wide with --line-width N, or "
                        "make polygons of them")  # fmt: skip
    canvas = np.zeros((height, width), np.uint8)
    points = np.round((np.asarray(shape.line) - 0.5) * 16).astype(np.int32)  # OpenCV's corners are centres of pixels
    cv2.polylines(canvas, [points], False, 1, line_width, shift=4)
    return canvas != 0


def _beyond(shape: Shape, height: int, width: int, outside: bool) -> bool:
    """Whether a shape reaches beyond its image.

    Raises:
        DataError: it does, and must not; or it is no outline at all.
    """
    corners = _corners(shape)
    if not np.isfinite(corners).all():
        raise DataError(f"{shape.at}: a corner is no number. Draw it again")
    if any(len(ring) < 3 for ring in (*shape.rings, *shape.holes)):
        raise DataError(f"{shape.at}: a polygon of fewer than three corners. Remove it, or draw it again")
    low, high = corners.min(0), corners.max(0)
    over = max(-low.min(), high[0] - width, high[1] - height)
    if over <= OUTSIDE:
        return False
    told = f"{shape.at}: it reaches from ({low[0]:g}, {low[1]:g}) to ({high[0]:g}, {high[1]:g}) where the image is "
    told += f"{width}x{height} pixels (width x height)"
    if over > max(height, width):
        raise DataError(f"{told}: labels of another image, or of this one at another size. Export them again")
    if not outside:
        raise DataError(f"{told}. Correct it, or have it cut at the edge with --allow-outside")
    return True


def _corners(shape: Shape) -> np.ndarray:
    """The corners that a shape reaches to, float64 (n, 2)."""
    if shape.circle:
        x, y, radius = shape.circle
        return np.array([[x - radius, y - radius], [x + radius, y + radius]])
    if shape.bits:
        bits, left, top = shape.bits
        return np.array([[left, top], [left + bits.shape[1], top + bits.shape[0]]], float)
    if shape.line is not None:
        return shape.line
    return np.concatenate(shape.rings)


def in_order(painted: list[Painted], height: int, width: int) -> tuple[Painted, ...]:
    """Shapes as they are painted: crowds first, then from the most pixels to the fewest, equal ones as they came."""
    return tuple(sorted(painted, key=lambda shape: (not shape[1], -pixels_of(shape[2], height, width))))


def pixels_of(counts: bytes, height: int, width: int) -> int:
    """How many pixels run lengths cover."""
    return int(rle_api.area({"size": [height, width], "counts": counts}))


def paint(drawing: Drawing) -> np.ndarray:
    """Paint an image's shapes in their order.

    Returns:
        uint8 (H, W), classes and 255.
    """
    height, width, unlabelled, shapes = drawing
    mask = np.full((height, width), unlabelled, np.uint8)
    for number, crowd, counts in shapes:
        mask[rle_api.decode({"size": [height, width], "counts": counts}) != 0] = IGNORE if crowd else number
    return mask


def read_drawn(item: Item) -> Sample:
    """Read an image, and paint its mask.

    Raises:
        DataError: a damaged image, or one that has changed its size.
    """
    drawing: Drawing = item.label  # type: ignore[assignment]
    return read_pair(item, lambda: paint(drawing), "its annotation")
