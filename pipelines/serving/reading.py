"""The images in sources: decoded by the rules of the shards, frame by frame where they are videos."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np

from datasets.damage import decode_checked
from datasets.sample import JPEG, PNG, DataError, check_size, image_size
from datasets.storage import locate, read_bytes
from pipelines.feed.plan import open_shards
from pipelines.serving.sources import Source


def frames_in(sources: Iterable[Source], every: int) -> int:
    """How many images the sources are, as far as videos say."""
    return sum(-(-video_frames(source) // every) if source.kind == "video" else 1 for source in sources)


def video_frames(source: Source) -> int:
    """The frames that a local video says it has; 1 where it does not say."""
    if "://" in source.place:
        return 1
    capture = cv2.VideoCapture(source.place)
    try:
        return max(1, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    finally:
        capture.release()


def read_image(source: Source) -> np.ndarray:
    """The image of a source, by the rules of the shards: uint8 (H, W, 3) RGB, EXIF rotation not applied.

    Raises:
        DataError: it is missing, damaged, too large, of another format, or several pictures.
    """
    from segmodels.images import decode

    row = source.kind == "row"
    data = open_shards(source.place).encoded(source.row)[0] if row else fetch(source.place)
    if not data.startswith((JPEG, PNG)):
        return decode(data)
    check_size(*image_size(data))
    return decode_checked(data)


def fetch(place: str) -> bytes:
    """The bytes of a file.

    Raises:
        DataError: it does not read.
    """
    if "://" in place:
        system, path = locate(place)
        return read_bytes(system, path)
    try:
        return Path(place).read_bytes()
    except OSError as error:
        raise DataError(f"{error.strerror or error}") from None


def frames(source: Source, every: int) -> Iterator[tuple[str, np.ndarray]]:
    """Each `every`-th frame of a video, uint8 (H, W, 3) RGB, and its name: that of the video, then the frame's number.

    Raises:
        DataError: no frame reads, or the video ends before the frames that it says it has.
    """
    with local(source.place) as path:
        capture = cv2.VideoCapture(path)
        said, number = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0
        try:
            while capture.grab():
                if number % every == 0:
                    held, frame = capture.retrieve()
                    if not held:
                        raise DataError(f"frame {number} does not decode; convert the video")
                    yield f"{source.name}/{number:06d}", cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                number += 1
        finally:
            capture.release()
    if not number:
        raise DataError("no video that OpenCV reads; convert it to H.264 in MP4")
    if number < 0.99 * said:  # containers guess, by a frame or two
        raise DataError(f"the video says it has {said} frames and ends after {number}: it is cut off; fetch it again")


@contextlib.contextmanager
def local(place: str) -> Iterator[str]:
    """A file as one on this machine, in the body: a bucket's is fetched first."""
    if "://" not in place:
        yield place
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video"
        path.write_bytes(fetch(place))
        yield str(path)
