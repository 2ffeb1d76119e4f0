"""Large images as several rows: each side is cut into the fewest equal parts that fit, without overlap.

A side of L pixels becomes ceil(L / N) parts, which differ by at most one pixel: no narrow rest at the edges, no pixel
twice, none lost. So classes have as many pixels as before.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np

from datasets.exports.finding import stored_size
from datasets.sample import Benchmark, Cell, DataError, Item, Rows, Sample, Tile, decode_image

LEAST = 64
"""The shortest side of tiles that is allowed, pixels."""
LARGE = 4096
"""Pixels: where an image has a longer side, every crop of it decodes more than training needs."""


def tiled(benchmark: Benchmark, side: int) -> Benchmark:
    """A benchmark whose larger images are cut; those of at most `side` pixels a side stay as they are.

    Args:
        benchmark: of masks; objects are not cut.
        side: N, the longest side of a tile, pixels.

    Raises:
        DataError: the side is too short.
    """
    if side < LEAST:
        raise DataError(f"--tile {side}: allowed are {LEAST} pixels or more")
    note = f"--tile {side}: larger images are cut into equal parts of at most {side} pixels a side, without overlap; a "
    note += "tile is called NAME_yTOP_xLEFT by its upper left pixel, and stored as PNG"
    return replace(benchmark, index=partial(index_tiles, index=benchmark.index, side=side),
                   read=partial(read_tile, read=benchmark.read), notes=(*benchmark.notes, note))  # fmt: skip


def index_tiles(split: str, index: Callable[[str], list[Item]], side: int) -> list[Item]:
    """The rows of a split: the tiles of an image stand together, row by row of the image.

    Args:
        split: of the benchmark.
        index: of whole images.
        side: the longest side of a tile, pixels.
    """
    rows = index(split)
    cut = [part for item in rows for part in tiles_of(item, side)]
    return Rows(cut, rows.listed) if isinstance(rows, Rows) else cut


def tiles_of(item: Item, side: int) -> Iterator[Item]:
    """The tiles of an image, or the image where it is small enough."""
    try:
        height, width = size_of(item)
    except DataError:  # reported when it is read
        height = width = 1
    if max(height, width) <= side:
        yield item
        return
    whole = item.bytes or os.path.getsize(item.image)
    for top, bottom in parts(height, side):
        for left, right in parts(width, side):
            share = max(1, whole * (bottom - top) * (right - left) // (height * width))
            name = f"{item.id}_y{top:05d}_x{left:05d}"
            yield Item(name, item.image, Tile(item, (top, left, bottom, right)), share)


def size_of(item: Item) -> tuple[int, int]:
    """Height and width of an item's image, from its header.

    Raises:
        DataError: the header does not read.
    """
    if isinstance(item.label, Cell):
        return item.label.height, item.label.width
    return stored_size(Path(item.image))[0]


def parts(length: int, side: int) -> list[tuple[int, int]]:
    """The fewest equal parts of a length that are at most `side` long: first and last + 1 of each."""
    count = -(-length // side)
    edges = [k * length // count for k in range(count + 1)]
    return list(itertools.pairwise(edges))


def read_tile(item: Item, read: Callable[[Item], Sample]) -> Sample:
    """Read a row, which may be a part of an image; the image is kept until another is asked for.

    Args:
        item: the row.
        read: reads whole images.

    Raises:
        DataError: as `read`.
    """
    if not isinstance(item.label, Tile):
        return read(item)
    top, left, bottom, right = item.label.box
    image, mask = _whole(item.label.item, read)
    data = cv2.imencode(".png", image[top:bottom, left:right, ::-1])[1].tobytes()
    return Sample(item.id, data, None if mask is None else np.ascontiguousarray(mask[top:bottom, left:right]))


@lru_cache(maxsize=1)
def _whole(item: Item, read: Callable[[Item], Sample]) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels and mask of a whole image."""
    sample = read(item)
    return decode_image(sample.image), sample.mask
