"""Grounds for the sample's scenes: two regions of stuff, one above the other."""

import cv2
import numpy as np

from datasets.drawing import noise, rgb

VOID = -1
ABOVE = {"sky-other-merged": (108, 0.3, 0.95, 30.0), "wall-other-merged": (15, 0.15, 0.75, 2.5)}
BELOW = {"grass-merged": (50, 0.45, 0.5, 3.0), "sea": (100, 0.5, 0.55, 14.0), "road": (0, 0.0, 0.4, 5.0)}
"""COCO's name of a kind of stuff: hue in half degrees, saturation, value, size of its blobs in pixels."""
STUFF = (*ABOVE, *BELOW)
BORDER = 1
"""Pixels of no stuff on either side of the line where the two meet."""


def draw_ground(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw one kind of stuff above another; they meet in a slanted line.

    Args:
        rng: all randomness.
        size: height and width, pixels.

    Returns:
        The image, float (H, W, 3) of 0..255, and int16 (H, W): places in `STUFF`, or `VOID`.
    """
    upper, lower = str(rng.choice(list(ABOVE))), str(rng.choice(list(BELOW)))
    left, right = rng.uniform(0.3, 0.7, 2) * size[0]
    line = np.linspace(left, right, size[1])
    down = np.arange(size[0])[:, None] - line
    below = down >= 0
    image = np.where(below[..., None], _surface(rng, size, lower), _surface(rng, size, upper))
    kinds = np.where(below, STUFF.index(lower), STUFF.index(upper)).astype(np.int16)
    kinds[np.abs(down + 0.5) <= BORDER] = VOID
    return cv2.GaussianBlur(image, (3, 3), 0), kinds


def _surface(rng: np.random.Generator, size: tuple[int, int], kind: str) -> np.ndarray:
    """The colours of a kind of stuff, float (H, W, 3): two tones of its hue in blobs of its size."""
    hue, saturation, value, grain = (ABOVE | BELOW)[kind]
    mix = noise(rng, size, grain * rng.uniform(0.8, 1.25))[..., None]
    value = min(1.0, value * rng.uniform(0.9, 1.1))
    return rgb(hue + rng.normal(0, 3), saturation, value) * (1 - mix) + rgb(hue, saturation, 0.7 * value) * mix
