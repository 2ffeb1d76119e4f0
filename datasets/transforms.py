"""Seeded training views and the order of an epoch."""

import hashlib
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import cv2
import numpy as np

from datasets.sample import IGNORE, DataError

VIEWS = 2  # one more whenever the same seeds give other views or another order: no run goes on across that


def sample_seed(seed: int, epoch: int, sample_id: str) -> int:
    """The seed of one sample in one epoch, whatever worker or batch it falls to.

    Args:
        seed: the run's, 0 or greater.
        epoch: counted from 0.
        sample_id: the row's id.
    """
    # NumPy's SeedSequence would take 45 µs of a sample's 1,200
    return int.from_bytes(hashlib.sha256(f"{seed} {epoch} {sample_id}".encode()).digest()[:8], "big")


def epoch_order(ids: Sequence[str], seed: int, epoch: int) -> np.ndarray:
    """The row numbers of an epoch, each once: a function of the set of ids, the seed and the epoch.

    How rows lie in the shards does not matter: the same ids come in the same order.

    Args:
        ids: unique ids, by row number.
        seed: the run's.
        epoch: counted from 0.

    Returns:
        int64 (n,).
    """
    by_id = np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    return by_id[generator.permutation(len(ids))]


@dataclass(frozen=True)
class Window:
    """Random scale, pad to the crop, random crop: done as one window of the source and one resize of that window.

    Equals resizing the whole image by s, padding right and bottom, and cropping, up to one rounding of the window's
    corner to source pixels; at a fraction of the cost. Image linear, mask nearest, both with pixel centres aligned.

    Args:
        size: height and width of the crop, pixels.
        scale: least and greatest s, drawn uniformly.
        fill: RGB of the padding; its mask is 255.
    """

    size: tuple[int, int]
    scale: tuple[float, float]
    fill: tuple[int, int, int]

    def draw(self, generator: random.Random, shape: Sequence[int]) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
        """Window (top, left, height, width) of an image of `shape`, and the (height, width) it is resized to."""
        s = generator.uniform(*self.scale)
        height, new_height = _extent(shape[0], self.size[0], s)
        width, new_width = _extent(shape[1], self.size[1], s)
        top = int(generator.random() * (shape[0] - height + 1))  # randint takes three times as long
        left = int(generator.random() * (shape[1] - width + 1))
        return (top, left, height, width), (new_height, new_width)

    def cut(
        self, pixels: np.ndarray, window: tuple[int, int, int, int], resized: tuple[int, int], out: np.ndarray
    ) -> None:
        """Write the resized window into the upper left of `out`, and the fill around it.

        Args:
            pixels: an image uint8 (H, W, 3), or a mask uint8 (H, W).
            window, resized: from `draw`.
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


@lru_cache(maxsize=32)
def _padding(shape: tuple[int, ...], fill: Any) -> np.ndarray:
    """A crop that is padding alone, uint8, made once per process."""
    return np.full(shape, fill, np.uint8)


def _extent(source: int, crop: int, s: float) -> tuple[int, int]:
    """Along one axis: source pixels of the window, and pixels after the resize; the rest of the crop is padding."""
    wanted = max(1, round(crop / s))
    if wanted <= source:
        return wanted, crop
    return source, max(1, min(crop, round(source * s)))


@dataclass(frozen=True)
class TrainView:
    """One random crop of an image and its mask, a function of the seed alone.

    Args:
        crop: height and width of the crop, pixels.
        scale: least and greatest scale, drawn uniformly.
        flip: probability of a flip left to right.
        fill: RGB of padding; its mask is 255.
        brightness: greatest change, as a fraction of 255; 0 leaves it.
        contrast: greatest change of the contrast's factor from 1; 0 leaves it.
        saturation: greatest change of the saturation's factor from 1; 0 leaves it.
        hue: greatest turn of the hue, as a fraction of the circle; 0 leaves it.
        rotate: greatest turn of the crop in degrees, either way; corners become padding; 0 leaves it.
        flip_pairs: classes of the mask that change places in a flip (left arm, right arm).

    Raises:
        DataError: a value out of its range.
    """

    crop: tuple[int, int]
    scale: tuple[float, float]
    flip: float = 0.5
    fill: tuple[int, int, int] = (124, 116, 104)
    brightness: float = 0
    contrast: float = 0
    saturation: float = 0
    hue: float = 0
    rotate: float = 0
    flip_pairs: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        for key in ("crop", "scale", "fill"):
            object.__setattr__(self, key, tuple(getattr(self, key)))  # YAML gives lists; the pipeline's cache hashes
        rules = {
            "crop": (len(self.crop) == 2 and min(self.crop) > 0, "(height, width), both greater than 0"),
            "scale": (len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1], "(least, greatest), 0 < least"),
            "fill": (len(self.fill) == 3 and all(0 <= c <= 255 for c in self.fill), "RGB of 0-255"),
            "flip": (0 <= self.flip <= 1, "a probability"),
            "brightness": (0 <= self.brightness <= 1, "0-1"),
            "contrast": (0 <= self.contrast <= 1, "0-1"),
            "saturation": (0 <= self.saturation <= 1, "0-1"),
            "hue": (0 <= self.hue <= 0.5, "0-0.5"),
            "rotate": (0 <= self.rotate <= 180, "0-180 degrees"),
        }
        for key, (holds, allowed) in rules.items():
            if not holds:
                raise DataError(f"view: {key} is {getattr(self, key)}; allowed is {allowed}")

    @cached_property
    def _window(self) -> Window:
        return Window(self.crop, self.scale, self.fill)

    def __call__(
        self, image: np.ndarray, mask: np.ndarray, seed: int, out: tuple[np.ndarray, np.ndarray] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cut a view.

        Args:
            image: uint8 (H, W, 3).
            mask: uint8 (H, W).
            seed: from `sample_seed`.
            out: contiguous arrays of the view's shapes, such as places of a batch, to write it to.

        Returns:
            image uint8 (h, w, 3) and mask uint8 (h, w), contiguous; `out` where it is given.
        """
        out = out or (np.empty((*self.crop, 3), np.uint8), np.empty(self.crop, np.uint8))
        if not (self.rotate or self.brightness or self.contrast or self.saturation or self.hue):
            self._window_and_flip(image, mask, random.Random(seed), *out)
            return out
        from datasets.augment import pipeline_of  # albumentations: a second's import that few views need

        pipeline = pipeline_of(self, threading.get_ident())
        # Compose.set_random_seed starts every transform at the same state, and flips would follow the scale;
        # one shared generator keeps the draws independent
        pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        view = pipeline(image=image, mask=mask)
        out[0][:], out[1][:] = view["image"], view["mask"]
        return out

    def _window_and_flip(
        self,
        image: np.ndarray,
        mask: np.ndarray,
        generator: random.Random,
        image_out: np.ndarray,
        mask_out: np.ndarray,
    ) -> None:
        """The common view without Compose, whose bookkeeping costs a fifth of it: the same draws, the same pixels."""
        scaled = self._window
        generator.random()  # Compose's own draw: whether it runs at all
        window, resized = scaled.draw(generator, image.shape)
        scaled.cut(image, window, resized, image_out)
        scaled.cut(mask, window, resized, mask_out)
        if self.flip >= 1 or (self.flip > 0 and generator.random() < self.flip):
            cv2.flip(image_out, 1, image_out)
            cv2.flip(mask_out, 1, mask_out)
            if self.flip_pairs:
                mask_out[:] = exchanged(mask_out, self.flip_pairs)


def exchanged(mask: np.ndarray, pairs: tuple[tuple[int, int], ...]) -> np.ndarray:
    """The mask, uint8 (H, W), with the classes of each pair in each other's place."""
    if not pairs:
        return mask
    table = np.arange(256, dtype=np.uint8)
    for one, other in pairs:
        table[[one, other]] = other, one
    return cv2.LUT(mask, table)
