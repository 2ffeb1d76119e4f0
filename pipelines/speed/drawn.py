"""Data for measurements: drawn pictures, or those of a folder, brought to one size and written as shards."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

Pair = tuple[np.ndarray, np.ndarray]  # image uint8 (H, W, 3) RGB, mask uint8 (H, W)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder that holds the shards' cache too, so that nothing of a measurement stays behind."""
    before = os.environ.get("SHARD_CACHE")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        os.environ["SHARD_CACHE"] = str(Path(folder) / "cache")
        try:
            yield Path(folder)
        finally:
            os.environ.pop("SHARD_CACHE")
            if before is not None:
                os.environ["SHARD_CACHE"] = before


def draw(rows: int, size: tuple[int, int]) -> Iterator[Pair]:
    """`rows` pictures of the bundled sample's kind, `size` (height, width) pixels; the same ones each time."""
    from datasets.drawing import draw_scene

    for i in range(rows):
        rng = np.random.default_rng([0, i])
        numbers = [i % 20 + 1, *map(int, rng.integers(1, 21, 2)), 0, 0]
        image, things = draw_scene(rng, size, numbers, "voc")
        mask = np.zeros(size, np.uint8)
        for thing in things:
            mask[thing.mask] = thing.number
        yield image, mask


def write_shards(folder: Path, pairs: Iterable[Pair], classes: Sequence[str], quality: int = 95) -> Path:
    """Write pictures as files, then the shards that `prepare folder` would make of them.

    Args:
        folder: a new folder for both.
        pairs: images and masks.
        classes: names of the masks' values.
        quality: of the JPEG files, 1..100.

    Returns:
        The folder of the splits; `train` is the one written.
    """
    from datasets.catalog import BENCHMARKS
    from datasets.manifest import write_manifest
    from datasets.writer import plan_files, write_part

    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for i, (image, mask) in enumerate(pairs):
        data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        (folder / f"images/{i:06d}.jpg").write_bytes(data.tobytes())
        (folder / f"masks/{i:06d}.png").write_bytes(cv2.imencode(".png", mask)[1].tobytes())
    (folder / "classes.yaml").write_text(json.dumps({"classes": list(classes)}))  # JSON is YAML
    benchmark = BENCHMARKS["folder"](folder)
    items, uri = benchmark.index("train"), str(folder / "shards" / "train")
    groups = plan_files(items, target_bytes=8 << 20)  # several files, as a real split has
    records = [write_part(uri, i, group, benchmark, "train") for i, group in enumerate(groups)]
    write_manifest(uri, benchmark, "train", records, False)
    return folder / "shards"


def original_shards(folder: Path, source: Path, rows: int) -> Path:
    """Shards of the first `rows` images of a folder's train split, its files' own bytes.

    Args:
        folder: a new folder for them.
        source: CamVid's release (`train`, `trainannot`), or the layout of `prepare folder`.
        rows: at most so many.

    Returns:
        The folder of the split.
    """
    from datasets.catalog import BENCHMARKS
    from datasets.manifest import write_manifest
    from datasets.writer import write_part

    benchmark = BENCHMARKS["camvid" if (source / "trainannot").is_dir() else "folder"](source)
    uri, items = str(folder / "train"), benchmark.index("train")[:rows]
    write_manifest(uri, benchmark, "train", [write_part(uri, 0, items, benchmark, "train")], True)
    return folder / "train"


def drawn_shards(folder: Path, rows: int, size: tuple[int, int]) -> Path:
    """Shards of `rows` drawn pictures in VOC's classes; returns the folder whose `train` they are."""
    from datasets.readers.voc import CLASSES

    return write_shards(folder, draw(rows, size), CLASSES)
