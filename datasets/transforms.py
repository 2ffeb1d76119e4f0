"""Seeded training views and the order of an epoch."""

import hashlib
import random
import threading
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from datasets.sample import DataError
from datasets.window import Window, exchanged

VIEWS = 2
TURNED_VIEWS = 3  # up to 0.4.0 the finished crop was turned
"""One more whenever the same seeds give other views or another order: no run goes on across that."""


def views_version(rotate: float) -> int:
    """The version by which views are cut: `VIEWS`, or that of views that are turned."""
    return TURNED_VIEWS if rotate else VIEWS


def sample_seed(seed: int, epoch: int, sample_id: str) -> int:
    """The seed of one sample in one epoch, whichever worker or batch gets the sample.

    Args:
        seed: the run's, 0 or greater.
        epoch: counted from 0.
        sample_id: the row's id.

    Returns:
        A number of 64 bits.
    """
    # NumPy's SeedSequence would take 45 µs of a sample's 1,200
    return int.from_bytes(hashlib.sha256(f"{seed} {epoch} {sample_id}".encode()).digest()[:8], "big")


def epoch_order(rows: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: each place of the rows' ids in their own order, once.

    Place p stands for the row whose id is the p-th of all: so the order of the rows in the shards does not matter.

    Args:
        rows: their number.
        seed: the run's.
        epoch: counted from 0.

    Returns:
        int32 (n,), int64 where that is too short.
    """
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    places = np.arange(rows, dtype=np.int32 if rows <= np.iinfo(np.int32).max else np.int64)
    generator.shuffle(places)  # as `permutation` draws, which knows only the longer numbers
    return places


@dataclass(frozen=True)
class TrainView:
    """One random crop of an image and its mask, a function of only the seed.

    Args:
        crop: height and width of the crop, pixels.
        scale: least and greatest scale, drawn uniformly.
        flip: probability of a flip left to right.
        fill: RGB of the padding; its mask is 255.
        brightness: greatest change, as a fraction of 255; 0 leaves it.
        contrast: greatest change of the contrast's factor from 1; 0 leaves it.
        saturation: greatest change of the saturation's factor from 1; 0 leaves it.
        hue: greatest turn of the hue, as a fraction of the circle; 0 leaves it.
        rotate: greatest turn of the scaled image in degrees, either way, before padding and crop; only what lies
            outside of the image becomes padding; 0 leaves it.
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
            out: contiguous arrays of the view's shapes to write it to, such as places of a batch.

        Returns:
            Image uint8 (h, w, 3) and mask uint8 (h, w), contiguous; `out` where it is given.
        """
        out = out or (np.empty((*self.crop, 3), np.uint8), np.empty(self.crop, np.uint8))
        if not (self.rotate or self.brightness or self.contrast or self.saturation or self.hue):
            self._window_and_flip(image, mask, random.Random(seed), *out)
            return out
        from datasets.augment import pipeline_of  # albumentations: a second's import that few views need

        pipeline = pipeline_of(
            threading.get_ident(),
            self._window,
            flip=self.flip,
            flip_pairs=self.flip_pairs,
            rotate=self.rotate,
            brightness=self.brightness,
            contrast=self.contrast,
            saturation=self.saturation,
            hue=self.hue,
        )
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
        """The common view without Compose, whose bookkeeping costs a fifth of its time: the same draws and pixels."""
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
