"""Images to try a program on: rows of shards, or scenes of the bundled sample."""

from __future__ import annotations

import numpy as np

from datasets.drawing import draw_scene
from pipelines.feed.plan import open_shards

COUNT = 4


def rows_of(uri: str, window: tuple[int, int] | None) -> list[np.ndarray]:
    """The first `COUNT` images of shards, RGB uint8 (1, 3, H, W); of a bound head, a window of each.

    Raises:
        DataError: no readable shards.
    """
    shards = open_shards(uri)
    images = [shards.sample(row)[0] for row in range(min(COUNT, len(shards)))]
    return [batched(image if window is None else cut(image, window)) for image in images]


def scenes(size: tuple[int, int], bound: bool) -> list[np.ndarray]:
    """Drawn as the bundled sample's are, RGB uint8 (1, 3, H, W): half of them of another size unless that is bound."""
    rng = np.random.default_rng(0)
    other = size if bound else (size[0] * 3 // 4 + 1, size[1] * 5 // 4 + 1)
    drawn = [draw_scene(rng, size if i < COUNT // 2 else other, [1 + i, 7 + i], "voc")[0] for i in range(COUNT)]
    return [batched(image) for image in drawn]


def cut(image: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """The upper left (h, w) of an image, whose border is repeated where it is smaller."""
    part = image[: window[0], : window[1]]
    missing = [(0, side - there) for side, there in zip(window, part.shape, strict=False)]
    return np.pad(part, [*missing, (0, 0)], mode="edge")


def batched(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> (1, 3, H, W)."""
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None])
