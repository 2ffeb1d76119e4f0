"""What classification sees of a row: a random-resized crop and its class; in validation the middle of the image."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import cv2
import numpy as np
import pyarrow as pa

from datasets.raw_column import column, flat
from datasets.sample import DataError, Segment, decode_image
from datasets.shards import Shards
from datasets.tasks.view import TaskView

RATIOS = (3 / 4, 4 / 3)
"""Of the crop's width to its height, before it is resized (Szegedy et al., CVPR 2015, arXiv:1409.4842)."""
TRIES = 10
SHOWN = 0.875
"""Share of the short side that validation sees: 224 of 256 pixels."""

Box = tuple[int, int, int, int]
"""Top, left, height and width of a window of the image, pixels."""


@dataclass(frozen=True)
class ClassView(TaskView):
    """A window of the image, resized once, and the image's class.

    In training the window has a random share of the image's area, a random ratio of its sides and a random place, and
    is flipped at random; in validation it is the middle of the image.

    Args:
        crop: height and width of the view, pixels.
        area: least and greatest share of the image's area, drawn uniformly.
        flip: probability of a flip left to right.
        train: whether anything is random.

    Raises:
        DataError: a value out of its range.
    """

    crop: tuple[int, int]
    area: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    train: bool = True

    def __post_init__(self) -> None:
        rules = {
            "crop": (len(self.crop) == 2 and min(self.crop) > 0, "(height, width), both greater than 0"),
            "area": (len(self.area) == 2 and 0 < self.area[0] <= self.area[1] <= 1, "(least, greatest), 0 to 1"),
            "flip": (0 <= self.flip <= 1, "a probability"),
        }
        for key, (holds, allowed) in rules.items():
            if not holds:
                raise DataError(f"view: {key} is {getattr(self, key)}; allowed is {allowed}")

    @classmethod
    def of(cls, crop: tuple[int, int], scale: tuple[float, float], flip: float, *, train: bool) -> Self:
        """The view of a recipe, whose `scale` is the range of the share of the image's area.

        Raises:
            DataError: a value out of its range.
        """
        return cls(tuple(crop), tuple(scale), flip, train)  # type: ignore[arg-type]  # two of each, which is checked

    @property
    def words(self) -> str:
        """The view of validation in words."""
        height, width = self.crop
        return f"the middle {height}x{width} of an image whose short side is {round(min(self.crop) / SHOWN)}"

    def canvas(self, sizes: np.ndarray) -> tuple[int, int]:
        """The crop, whatever the images' sizes."""
        return self.crop

    def read(self, shards: Shards, row: int, seed: int, canvas: tuple[int, int]) -> tuple[np.ndarray, int]:
        """One view of a row: uint8 (h, w, 3), and its class.

        Raises:
            DataError: the row has no class, or is damaged.
        """
        number = class_of(shards.segments(row), f"{shards.uri}, row {row}")
        return self.view(decode_image(shards.encoded(row)[0]), seed), number

    def view(self, image: np.ndarray, seed: int) -> np.ndarray:
        """One view of an image.

        Args:
            image: uint8 (H, W, 3).
            seed: from `sample_seed`; validation does not look at it.

        Returns:
            uint8 (h, w, 3), contiguous.
        """
        size = (image.shape[0], image.shape[1])
        if not self.train:
            return resized(image, middle_window(size, self.crop), self.crop)
        generator = random.Random(seed)
        view = resized(image, random_window(generator, size, self.area), self.crop)
        return cv2.flip(view, 1) if generator.random() < self.flip else view

    def alone(self, image: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        """The view of an image without a class, and its size."""
        return self.view(image, 0), self.crop

    def pack(self, samples: Sequence[tuple[np.ndarray, Any]]) -> pa.Table:
        """Pixels and class of each view, a row each."""
        images = np.stack([image for image, _ in samples])
        return pa.table({"image": column(images), "class": pa.array([number for _, number in samples], pa.int64())})

    def unpack(self, table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 (B, h, w, 3) and classes int64 (B,), over the table's own bytes, only to be read."""
        return flat(table["image"]).reshape(-1, *self.crop, 3), table["class"].to_numpy()


def class_of(segments: Sequence[Segment] | None, where: str) -> int:
    """The class of an image: that of its only segment; of several, of the one with the largest box.

    Args:
        segments: of the row.
        where: the row, for the message.

    Raises:
        DataError: it has none.
    """
    if not segments:
        raise DataError(f"{where}: no segment, so no class; classification takes shards whose rows have one (imagenet)")
    return max(segments, key=lambda segment: segment.box[2] * segment.box[3]).number


def random_window(generator: random.Random, size: tuple[int, int], area: tuple[float, float]) -> Box:
    """A window of random area, ratio and place; after ten that do not fit, the largest middle one of an allowed ratio.

    Args:
        generator: all randomness.
        size: height and width of the image, pixels.
        area: least and greatest share of the image's area.
    """
    height, width = size
    for _ in range(TRIES):
        pixels = height * width * generator.uniform(*area)
        ratio = math.exp(generator.uniform(math.log(RATIOS[0]), math.log(RATIOS[1])))
        h, w = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < h <= height and 0 < w <= width:
            return int(generator.random() * (height - h + 1)), int(generator.random() * (width - w + 1)), h, w
    ratio = min(max(width / height, RATIOS[0]), RATIOS[1])
    h, w = max(1, min(height, round(width / ratio))), max(1, min(width, round(height * ratio)))
    return (height - h) // 2, (width - w) // 2, h, w


def middle_window(size: tuple[int, int], crop: tuple[int, int]) -> Box:
    """What a centre crop sees of an image whose short side is first resized to crop / 0.875, in the image's pixels.

    Args:
        size: height and width of the image, pixels.
        crop: height and width of the view, pixels.
    """
    scale = min(side * SHOWN / wanted for side, wanted in zip(size, crop, strict=True))  # image pixels per pixel of it
    h, w = (max(1, min(side, round(wanted * scale))) for side, wanted in zip(size, crop, strict=True))
    return (size[0] - h) // 2, (size[1] - w) // 2, h, w


def resized(image: np.ndarray, window: Box, size: tuple[int, int]) -> np.ndarray:
    """A window of an image at another size: by the means of areas where it becomes smaller, else linearly."""
    top, left, height, width = window
    source = image[top : top + height, left : left + width]
    if (height, width) == size:
        return np.ascontiguousarray(source)
    smaller = height >= size[0] and width >= size[1]
    return cv2.resize(source, size[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
