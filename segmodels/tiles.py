"""Images that are too large to predict at once: cut into tiles that overlap, and put together again.

An image of up to `pixels` is one tile, which is the image itself. Of a larger one each tile has about that many, so
what prediction takes besides image and result does not grow with the image. Sliding windows at scale 1 stay where they
would be in the whole image, so tiles change nothing. For others a tile shows its neighbours' pixels up to a margin: the
prediction differs from the whole image's only in context from farther away.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from segmodels.inference import Inference

PIXELS = 1 << 23
"""Of a tile: 2896x2896. Images of the benchmarks are smaller: they are predicted as they are scored."""
MARGIN = 256
"""Pixels of context on each side of a tile of an image that is seen whole."""
CELL = 32
"""Tiles of images that are seen whole begin at multiples of this, the coarsest output stride."""


@dataclass(frozen=True)
class Span:
    """One tile along one side of the image, in pixels: what the model sees, and what of its prediction is kept."""

    start: int
    stop: int
    kept_start: int
    kept_stop: int

    @property
    def seen(self) -> slice:
        """Of the image, what the model sees."""
        return slice(self.start, self.stop)

    @property
    def kept(self) -> slice:
        """Of the image, what is kept."""
        return slice(self.kept_start, self.kept_stop)

    @property
    def inner(self) -> slice:
        """Of the tile, what is kept."""
        return slice(self.kept_start - self.start, self.kept_stop - self.start)


def tiles(size: tuple[int, int], inference: Inference, pixels: int = PIXELS) -> Iterator[tuple[Span, Span]]:
    """The tiles of an image, whose kept parts cover each pixel once: (rows, columns) of each.

    Args:
        size: (H, W) of the image.
        inference: how it is predicted.
        pixels: most of a tile, as far as windows and margins leave room for so few.
    """
    height, width = size
    if height * width <= pixels:
        yield Span(0, height, 0, height), Span(0, width, 0, width)
        return
    side = math.isqrt(pixels)
    tall, wide = (side, side) if min(size) > side else (height, pixels // height)
    if width <= side:
        tall, wide = pixels // width, width
    for rows in spans(height, tall, inference, 0):
        for columns in spans(width, wide, inference, 1):
            yield rows, columns


def spans(length: int, side: int, inference: Inference, axis: int) -> Iterator[Span]:
    """The tiles along one side of an image, each at most `side` long, or as long as its margins ask.

    Args:
        length: of the image's side.
        side: of a tile.
        inference: how a tile is predicted.
        axis: 0 for rows, 1 for columns.
    """
    if length <= side:
        yield Span(0, length, 0, length)
        return
    cell, rest, least = grid(inference, axis)
    side = max(least, least + (side - least) // cell * cell)
    start = kept = 0
    while True:
        # a tile that would end closer to the border than a window's step takes the rest too
        stop = length if start + side + cell > length else start + side
        kept_stop = length if stop == length else stop - rest
        yield Span(start, stop, kept, kept_stop)
        if stop == length:
            return
        kept = kept_stop
        start = (kept_stop - rest) // cell * cell


def grid(inference: Inference, axis: int) -> tuple[int, int, int]:
    """Of tiles along one side, in pixels: they begin at multiples of the first, overlap their kept parts by the second
    on each side, and are at least as long as the third.
    """
    if inference.window is None or inference.stride is None:
        return CELL, MARGIN, 2 * MARGIN + CELL
    window, stride = inference.window[axis], inference.stride[axis]
    if inference.scales == (1.0,):  # no window that covers a kept pixel is missing, and none is another
        return stride, window - stride, window + (math.ceil(window / stride) - 1) * stride
    margin = max(MARGIN, math.ceil(window / min(1.0, *inference.scales)))
    return CELL, margin, 2 * margin + CELL
