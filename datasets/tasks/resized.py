"""The geometry of detection's views: short and long side, flip, and the canvas that the images of a batch share."""

import random
from dataclasses import dataclass
from typing import ClassVar, Self

import cv2
import numpy as np

from datasets.sample import DataError
from datasets.tasks.aspect import aspect_order
from datasets.tasks.view import TaskView

STEP = 32
"""Sides of a canvas are multiples of it: of the greatest stride of a feature pyramid's trunk."""


@dataclass(frozen=True)
class Placed:
    """Where an image lies in its view: resized, flipped or not, in the canvas' upper left corner.

    Args:
        source: height and width of the image, pixels.
        size: height and width that it is resized to, pixels.
        flipped: whether left and right change places.
    """

    source: tuple[int, int]
    size: tuple[int, int]
    flipped: bool

    def turned(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels of the image as the view shows them.

        Args:
            pixels: an image uint8 (H, W, 3), resized linearly, or a mask uint8 (H, W), resized by the nearest pixel,
                both with pixel centres aligned.

        Returns:
            uint8 (h, w, 3), or (h, w) for a mask.
        """
        how = cv2.INTER_LINEAR if pixels.ndim == 3 else cv2.INTER_NEAREST_EXACT
        made = pixels if self.source == self.size else cv2.resize(pixels, self.size[::-1], interpolation=how)
        return cv2.flip(made, 1) if self.flipped else made

    def put(self, pixels: np.ndarray, out: np.ndarray) -> None:
        """Write them to the upper left of a canvas; what is around them stays.

        Args:
            pixels: as of `turned`.
            out: uint8 (H, W, 3), or (H, W) for a mask.

        Raises:
            ValueError: the canvas is too small.
        """
        height, width = self.size
        if height > out.shape[0] or width > out.shape[1]:
            raise ValueError(f"an image of {height}x{width} pixels does not fit a canvas of {out.shape[:2]}")
        out[:height, :width] = self.turned(pixels)

    def boxes(self, published: np.ndarray) -> np.ndarray:
        """Boxes in the view, cut at the image's edges.

        Args:
            published: x and y of the upper left corner, width, height; pixels of the image, float64 (n, 4).

        Returns:
            x1, y1, x2, y2 in pixels of the view, float32 (n, 4).
        """
        height, width = self.size
        scale = np.array([width / self.source[1], height / self.source[0]] * 2)
        corners = np.concatenate([published[:, :2], published[:, :2] + published[:, 2:]], axis=1) * scale
        if self.flipped:
            corners[:, [0, 2]] = width - corners[:, [2, 0]]
        return np.clip(corners, 0, [width, height] * 2).astype(np.float32)


@dataclass(frozen=True)
class ResizedView(TaskView):
    """A whole image whose short side is resized to `short`, or its long side to `long` where that makes it smaller.

    It is a function of only the seed. A view for validation has one `short`, and `flip` 0.

    Args:
        short: pixels; a pair is the least and the greatest, of which one is drawn for each sample.
        long: greatest length of the long side, pixels.
        flip: probability of a flip left to right.
        fill: RGB of the padding at right and bottom: close to ImageNet's mean, which normalises to 0.

    Raises:
        DataError: a value out of its range.
    """

    short: int | tuple[int, int] = 800
    long: int = 1333
    flip: float = 0.5
    fill: tuple[int, int, int] = (124, 116, 104)

    orders: ClassVar[bool] = True
    """Whether `order` is another than a plain permutation."""

    @classmethod
    def of(cls, crop: tuple[int, int], scale: tuple[float, float], flip: float, *, train: bool) -> Self:
        """The view of a recipe's `view`.

        Args:
            crop: `short` and `long`, pixels.
            scale: least and greatest factor of `short` in training; `long` is multiplied by the greatest.
            flip: as of the class, in training.
            train: whether it is of training; that of validation knows no chance.

        Raises:
            DataError: a value out of its range.
        """
        short, long = crop
        if not train:
            return cls(short, long, 0.0)
        return cls((round(short * scale[0]), round(short * scale[1])), round(long * scale[1]), flip)

    @property
    def words(self) -> str:
        """The view of validation in words."""
        return f"short side {self.shorts[1]}, long side at most {self.long}"

    def order(self, sizes: np.ndarray, seed: int, epoch: int, batch: int) -> np.ndarray:
        """The order of an epoch, see `aspect_order`."""
        return aspect_order(sizes, seed, epoch, batch)

    def __post_init__(self) -> None:
        short = (self.short, self.short) if isinstance(self.short, int) else tuple(self.short)
        object.__setattr__(self, "short", short)
        object.__setattr__(self, "fill", tuple(self.fill))  # YAML gives lists; a view is hashed
        rules = {
            "short": (len(short) == 2 and 0 < short[0] <= short[-1], "pixels, or (least, greatest) of them"),
            "long": (self.long >= max(short), f"at least short's {max(short)}"),
            "flip": (0 <= self.flip <= 1, "a probability"),
            "fill": (len(self.fill) == 3 and all(0 <= c <= 255 for c in self.fill), "RGB of 0-255"),
        }
        for key, (holds, allowed) in rules.items():
            if not holds:
                raise DataError(f"view: {key} is {getattr(self, key)}; allowed is {allowed}")

    @property
    def shorts(self) -> tuple[int, int]:
        """The least and the greatest short side, pixels."""
        return self.short  # type: ignore[return-value]

    def place(self, source: tuple[int, int], seed: int) -> Placed:
        """Draw where an image lies.

        Args:
            source: its height and width, pixels.
            seed: from `sample_seed`.
        """
        generator = random.Random(seed)
        least, greatest = self.shorts
        short = least + int(generator.random() * (greatest - least + 1))
        flipped = generator.random() < self.flip
        ((height, width),) = resized(np.array([source]), short, self.long).tolist()
        return Placed(source, (height, width), flipped)

    def canvas(self, sizes: np.ndarray) -> tuple[int, int]:
        """Height and width of the least canvas that holds all images at the greatest short side.

        Args:
            sizes: heights and widths of a global batch's images, int64 (n, 2).

        Returns:
            Multiples of `STEP`, pixels: the same on every worker, whatever short sides are drawn.
        """
        most = resized(sizes, self.shorts[1], self.long).max(axis=0)
        height, width = (int(-(-side // STEP) * STEP) for side in most)
        return height, width

    def alone(self, image: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        """The image in its own canvas, uint8 (h, w, 3), and its height and width there, pixels."""
        source = (image.shape[0], image.shape[1])
        placed = self.place(source, 0)
        return self.padded(image, placed, self.canvas(np.array([source]))), placed.size

    def padded(self, image: np.ndarray, placed: Placed, canvas: tuple[int, int]) -> np.ndarray:
        """The image in its canvas, uint8 (h, w, 3)."""
        out = np.empty((*canvas, 3), np.uint8)
        for channel, value in enumerate(self.fill):  # NumPy fills pixels with RGB slowly
            out[..., channel] = value
        placed.put(image, out)
        return out


def resized(sizes: np.ndarray, short: int, long: int) -> np.ndarray:
    """Sizes whose short side is `short`, unless the long side would be more than `long`: then that is `long`.

    Args:
        sizes: heights and widths, int64 (n, 2).
        short, long: pixels.

    Returns:
        int64 (n, 2), rounded half up (as mmdetection does), at least 1.
    """
    scale = np.minimum(short / sizes.min(axis=1), long / sizes.max(axis=1))
    return np.maximum(1, np.floor(sizes * scale[:, None] + 0.5).astype(np.int64))
