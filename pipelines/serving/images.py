"""Images to try a program on: rows of shards, or scenes of the bundled sample."""

from __future__ import annotations

import numpy as np

from datasets.drawing import draw_scene
from pipelines.feed.plan import open_shards
from pipelines.serving.program import least
from segmodels.segmentor import Segmentor

COUNT = 4


def rows_of(uri: str, model: Segmentor) -> list[np.ndarray]:
    """The first `COUNT` images of shards, RGB uint8 (1, 3, H, W), as large as a program of the model takes them.

    Raises:
        DataError: no readable shards.
    """
    shards = open_shards(uri)
    images = [shards.sample(row)[0] for row in range(min(COUNT, len(shards)))]
    sizes = [model.program_window or [max(side, least(model)) for side in image.shape[:2]] for image in images]
    return [batched(cut(image, (size[0], size[1]))) for image, size in zip(images, sizes, strict=True)]


def scenes(model: Segmentor, crop: tuple[int, int]) -> list[np.ndarray]:
    """Drawn images, RGB uint8 (1, 3, H, W), of about the training crop; half are of another size where that is free."""
    height, width = model.program_window or (max(side, least(model)) for side in crop)
    other = (height, width) if model.program_window else (height * 5 // 4 + 1, width * 3 // 2 + 1)
    return [batched(drawn((height, width) if i < COUNT // 2 else other, i)) for i in range(COUNT)]


def drawn(size: tuple[int, int], number: int) -> np.ndarray:
    """A scene as the bundled sample's, uint8 (H, W, 3)."""
    return draw_scene(np.random.default_rng(number), size, [1 + number, 7 + number], "voc")[0]


def cut(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The upper left (h, w) of an image, whose border is repeated where it is smaller."""
    part = image[: size[0], : size[1]]
    missing = [(0, side - there) for side, there in zip(size, part.shape, strict=False)]
    return np.pad(part, [*missing, (0, 0)], mode="edge")


def batched(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> (1, 3, H, W)."""
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None])
