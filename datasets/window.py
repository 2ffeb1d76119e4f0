"""The window of an image that becomes a crop, and the flip of classes that have sides."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from datasets.sample import IGNORE


@dataclass(frozen=True)
class Window:
    """Random scale, pad to the crop, random crop: done as one window of the source and one resize of that window.

    The result equals resizing the whole image by s, padding right and bottom, and cropping, except that the window's
    corner is rounded to source pixels; it costs a fraction of that. Images are resized linearly, masks by the nearest
    pixel, both with pixel centres aligned.

    Args:
        size: height and width of the crop, pixels.
        scale: least and greatest s, drawn uniformly.
        fill: RGB of the padding; its mask is 255.
    """

    size: tuple[int, int]
    scale: tuple[float, float]
    fill: tuple[int, int, int]

    def draw(self, generator: random.Random, shape: Sequence[int]) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
        """Draw a window.

        Args:
            generator: all randomness.
            shape: height and width of the image, pixels; what follows is ignored.

        Returns:
            The window (top, left, height, width), and the (height, width) that it is resized to.
        """
        s = generator.uniform(*self.scale)
        height, new_height = _extent(shape[0], self.size[0], s)
        width, new_width = _extent(shape[1], self.size[1], s)
        top = int(generator.random() * (shape[0] - height + 1))  # randint takes three times as long
        left = int(generator.random() * (shape[1] - width + 1))
        return (top, left, height, width), (new_height, new_width)

    def cut(
        self, pixels: np.ndarray, window: tuple[int, int, int, int], resized: tuple[int, int], out: np.ndarray
    ) -> None:
        """Write the resized window to the upper left of `out`, and the fill around it.

        Args:
            pixels: an image uint8 (H, W, 3), or a mask uint8 (H, W).
            window: from `draw`.
            resized: from `draw`.
            out: uint8 (h, w, 3), or (h, w) for a mask.
        """
        top, left, height, width = window
        source, target = pixels[top : top + height, left : left + width], out[: resized[0], : resized[1]]
        # INTER_NEAREST rounds down and would shift the mask against the image by up to half a pixel
        how, fill = (cv2.INTER_LINEAR, self.fill) if pixels.ndim == 3 else (cv2.INTER_NEAREST_EXACT, IGNORE)
        if resized != self.size:
            padding = _padding(out.shape, fill)  # NumPy fills pixels with RGB seventy times slower than it copies them
            out[resized[0] :] = padding[resized[0] :]
            out[: resized[0], resized[1] :] = padding[: resized[0], resized[1] :]
        if resized == (height, width):
            target[:] = source
        elif (made := cv2.resize(source, resized[::-1], dst=target, interpolation=how)) is not target:
            target[:] = made

    def cut_turned(
        self,
        pixels: np.ndarray,
        window: tuple[int, int, int, int],
        resized: tuple[int, int],
        degrees: float,
        out: np.ndarray,
    ) -> None:
        """As `cut`, from the image turned about the window's centre: what is next to the window fills its corners.

        Args:
            pixels: an image uint8 (H, W, 3), or a mask uint8 (H, W).
            window: from `draw`.
            resized: from `draw`.
            degrees: counter-clockwise.
            out: uint8 (h, w, 3), or (h, w) for a mask.
        """
        top, left, height, width = window
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        to_source = np.array([width / resized[1], height / resized[0]])[:, None]
        turn = np.array([[cos, -sin], [sin, cos]])  # of the crop's pixels, whose rows go down
        centre = np.array([resized[1] / 2, resized[0] / 2])
        # pixel centres are at halves: source + 1/2 = corner + scale (centre + turn (crop + 1/2 - centre))
        shift = np.array([left, top]) + to_source[:, 0] * (centre + turn @ (0.5 - centre)) - 0.5
        matrix = np.hstack([to_source * turn, shift[:, None]])
        how, fill = (cv2.INTER_LINEAR, self.fill) if pixels.ndim == 3 else (cv2.INTER_NEAREST, (IGNORE,))
        cv2.warpAffine(
            pixels, matrix, out.shape[1::-1], dst=out, flags=how | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT, borderValue=fill,
        )  # fmt: skip


@lru_cache(maxsize=32)
def _padding(shape: tuple[int, ...], fill: Any) -> np.ndarray:
    """A crop that is only padding, uint8, made once per process."""
    return np.full(shape, fill, np.uint8)


def _extent(source: int, crop: int, s: float) -> tuple[int, int]:
    """Along one axis: source pixels of the window, and pixels after the resize; the rest of the crop is padding."""
    wanted = max(1, round(crop / s))
    if wanted <= source:
        return wanted, crop
    return source, max(1, min(crop, round(source * s)))


def exchanged(mask: np.ndarray, pairs: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Exchange the two classes of each pair.

    Args:
        mask: uint8 (H, W).
        pairs: the classes.

    Returns:
        uint8 (H, W); the mask itself where there are no pairs.
    """
    if not pairs:
        return mask
    table = np.arange(256, dtype=np.uint8)
    for one, other in pairs:
        table[[one, other]] = other, one
    return cv2.LUT(mask, table)
