"""The masks of a video over its frames, as a video of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from datasets.sample import DataError
from pipelines.base.files import replacing
from pipelines.base.pictures import blend
from pipelines.serving.plan import Plan
from pipelines.serving.reading import frames, local
from pipelines.serving.results import Results, read_values
from pipelines.serving.sources import Source

CODEC = "mp4v"
RATE = 25.0
"""Frames a second of a video that does not say."""


def write_film(results: Results, source: Source, plan: Plan) -> None:
    """Draw the masks over the frames; frames without a mask are left out.

    Args:
        results: the folder that holds the masks.
        source: the video.
        plan: what the masks were predicted with.
    """
    shown = overlays(results, source, plan)
    first = next(shown, None)
    if first is None:
        return
    with (
        replacing(results.film(source.name)) as temporary,
        writing(temporary, first, rate_of(source) / plan.every) as out,
    ):
        out.write(first)
        for picture in shown:
            out.write(picture)


def overlays(results: Results, source: Source, plan: Plan) -> Iterator[np.ndarray]:
    """The frames that have a mask, under it: BGR uint8 (H, W, 3)."""
    class_of = np.zeros(256, np.uint8)
    class_of[list(plan.ids)] = np.arange(len(plan.ids))
    with contextlib.suppress(DataError):  # of a damaged video, which was told when its frames were predicted
        for name, image in frames(source, plan.every):
            if results.mask(name).exists():
                mask = class_of[read_values(results.mask(name))]
                yield cv2.cvtColor(blend(image, mask, plan.content["palette"]), cv2.COLOR_RGB2BGR)


@contextlib.contextmanager
def writing(path: Path, like: np.ndarray, rate: float) -> Iterator[cv2.VideoWriter]:
    """A video of pictures of this size, whole when the body has ended.

    Raises:
        OSError: it cannot be written.
    """
    out = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*CODEC), rate, (like.shape[1], like.shape[0]))
    if not out.isOpened():
        raise OSError(f"cannot write the video {path}")
    try:
        yield out
    finally:
        out.release()


def rate_of(source: Source) -> float:
    """Frames a second of a video."""
    with local(source.place) as path:
        capture = cv2.VideoCapture(path)
        try:
            return capture.get(cv2.CAP_PROP_FPS) or RATE
        finally:
            capture.release()
