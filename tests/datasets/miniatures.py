"""Small files in the layouts of the large releases, and their way through shards."""

import pickle
from pathlib import Path
from zlib import crc32

import cv2
import numpy as np

from datasets.sample import Benchmark
from datasets.shards import Shards, write_manifest, write_part

SIZE = (12, 16)


def write_image(path: Path, size: tuple[int, int] = SIZE, grey: bool = False) -> Path:
    """A random picture, JPEG or PNG by its name, in a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(crc32(path.name.encode()))
    cv2.imwrite(str(path), rng.integers(0, 256, size if grey else (*size, 3), dtype=np.uint8))
    return path


def write_mask(path: Path, mask: np.ndarray) -> Path:
    """A grey PNG of the mask's own type."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), mask)
    return path


def values(*numbers: int, dtype: type = np.uint8, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A mask that repeats the numbers."""
    return np.resize(np.array(numbers, dtype), size)


def litter(folder: Path, name: str = "x.jpg") -> None:
    """What file browsers leave behind."""
    for left in (".DS_Store", "Thumbs.db", f"._{name}"):
        (folder / left).write_bytes(b"\0\5\x16\7")


def through_shards(benchmark: Benchmark, split: str, folder: Path) -> Shards:
    """The split as shards, read by a pickled copy of the benchmark, as a task does."""
    copy = pickle.loads(pickle.dumps(benchmark))
    items = pickle.loads(pickle.dumps(benchmark.index(split)))
    uri = str(folder / "shards" / split)
    write_manifest(uri, benchmark, split, [write_part(uri, 0, items, copy, split)], partial=True)
    return Shards(uri, cache=folder / "cache")
