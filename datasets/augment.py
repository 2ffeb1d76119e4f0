"""The views that turn or recolour, as albumentations composes them. No other module imports albumentations."""

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from datasets.absent import absent
from datasets.sample import IGNORE
from datasets.window import Window, exchanged

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations calls home on import unless this is set before
with absent("albumentations.pytorch", "huggingface_hub"):  # torch and a web client: two thirds of the import's time
    import albumentations as A
    from albumentations.core.transforms_interface import BaseTransformInitSchema


class ScaledWindow(A.DualTransform):
    """`Window` as a transform, turned about its centre if that is asked for.

    Args:
        size: the window's.
        scale: the window's.
        fill: the window's.
        rotate: greatest turn in degrees, either way.
        p: probability.
    """

    class InitSchema(BaseTransformInitSchema):
        """albumentations uses this class to check the arguments of the transform."""

        size: tuple[int, int]
        scale: tuple[float, float]
        fill: tuple[int, int, int]
        rotate: float

    def __init__(
        self,
        size: tuple[int, int],
        scale: tuple[float, float],
        fill: tuple[int, int, int],
        rotate: float = 0,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.size, self.scale, self.fill, self.rotate = size, scale, fill, rotate
        self.window = Window(size, scale, fill)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the window."""
        window, resized = self.window.draw(self.py_random, params["shape"])
        degrees = self.py_random.uniform(-self.rotate, self.rotate) if self.rotate else 0.0
        return {"window": window, "resized": resized, "degrees": degrees}

    def apply(self, img: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        """Cut and resize an image, uint8 (H, W, 3) -> (h, w, 3)."""
        return self.cut(img, params)

    def apply_to_mask(self, mask: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        """Cut and resize a mask, uint8 (H, W) -> (h, w)."""
        return self.cut(mask, params)

    def cut(self, pixels: np.ndarray, params: dict[str, Any]) -> np.ndarray:
        """Cut the window from an image or a mask."""
        out = np.empty((*self.size, *pixels.shape[2:]), np.uint8)
        if self.rotate:
            self.window.cut_turned(pixels, params["window"], params["resized"], params["degrees"], out)
        else:
            self.window.cut(pixels, params["window"], params["resized"], out)
        return out


class Mirror(A.HorizontalFlip):
    """A flip left to right that exchanges classes of the mask.

    Args:
        pairs: the classes to exchange.
        p: probability.
    """

    class InitSchema(BaseTransformInitSchema):
        """albumentations uses this class to check the arguments of the transform."""

        pairs: tuple[tuple[int, int], ...]

    def __init__(self, pairs: tuple[tuple[int, int], ...], p: float = 0.5) -> None:
        super().__init__(p=p)
        self.pairs = pairs

    def apply_to_mask(self, mask: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        """Flip a mask, uint8 (H, W)."""
        return exchanged(super().apply_to_mask(mask, *args, **params), self.pairs)


def scaled_crop(crop: Sequence[int], scale: Sequence[float], fill: Any) -> A.Compose:
    """The usual pipeline, to compare with: the whole image resized, padded, then cropped.

    Args:
        crop: height and width, pixels.
        scale: least and greatest scale, drawn uniformly.
        fill: RGB of the padding; its mask is 255.
    """
    return A.Compose([
        A.RandomScale(scale_limit=(scale[0] - 1, scale[1] - 1), p=1.0),
        A.PadIfNeeded(*crop, border_mode=cv2.BORDER_CONSTANT, fill=fill, fill_mask=IGNORE),
        A.RandomCrop(*crop),
    ])  # fmt: skip


@lru_cache(maxsize=32)
def pipeline_of(
    thread: int,
    window: Window,
    *,
    flip: float,
    flip_pairs: tuple[tuple[int, int], ...] = (),
    rotate: float = 0,
    brightness: float = 0,
    contrast: float = 0,
    saturation: float = 0,
    hue: float = 0,
) -> A.Compose:
    """The pipeline of a view, built once per process and thread.

    Args:
        thread: whose pipeline it is; it holds the generator, so two threads must not share it.
        window: cuts the crop.
        flip: as in `TrainView`.
        flip_pairs: as in `TrainView`.
        rotate: as in `TrainView`.
        brightness: as in `TrainView`.
        contrast: as in `TrainView`.
        saturation: as in `TrainView`.
        hue: as in `TrainView`.
    """
    steps: list[A.BasicTransform] = [
        ScaledWindow(window.size, window.scale, window.fill, rotate),
        Mirror(flip_pairs, p=flip),
    ]
    if brightness or contrast:
        limits = (-brightness, brightness), (-contrast, contrast)
        steps.append(A.RandomBrightnessContrast(brightness_limit=limits[0], contrast_limit=limits[1], p=1.0))
    if saturation or hue:
        factors = max(0.0, 1 - saturation), 1 + saturation
        steps.append(A.ColorJitter(brightness=(1, 1), contrast=(1, 1), saturation=factors, hue=(-hue, hue), p=1.0))
    return A.Compose(steps)
