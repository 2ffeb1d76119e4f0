"""Small files in the layouts of the large releases, and their way to shards and back."""

import pickle
from pathlib import Path
from zlib import crc32

import cv2
import numpy as np
import yaml

from datasets.manifest import write_manifest
from datasets.sample import Benchmark
from datasets.shards import Shards
from datasets.writer import write_part

SIZE = (12, 16)


def write_image(path: Path, size: tuple[int, int] = SIZE, grey: bool = False) -> Path:
    """Write a random picture, JPEG or PNG by its name, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(crc32(path.name.encode()))
    cv2.imwrite(str(path), rng.integers(0, 256, size if grey else (*size, 3), dtype=np.uint8))
    return path


def write_mask(path: Path, mask: np.ndarray) -> Path:
    """Write a grey PNG of the mask's own type."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), mask)
    return path


def values(*numbers: int, dtype: type = np.uint8, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A mask in which the numbers repeat."""
    return np.resize(np.array(numbers, dtype), size)


def litter(folder: Path, name: str = "x.jpg") -> None:
    """Write what file browsers leave behind."""
    for left in (".DS_Store", "Thumbs.db", f"._{name}"):
        (folder / left).write_bytes(b"\0\5\x16\7")


def through_shards(benchmark: Benchmark, split: str, folder: Path) -> Shards:
    """The split as shards; a pickled copy of the benchmark reads it, as in a task."""
    copy = pickle.loads(pickle.dumps(benchmark))
    items = pickle.loads(pickle.dumps(benchmark.index(split)))
    uri = str(folder / "shards" / split)
    write_manifest(uri, benchmark, split, [write_part(uri, 0, items, copy, split)], partial=True)
    return Shards(uri, cache=folder / "cache")


def write_own(root: Path, count: int = 10, size: tuple[int, int] = (40, 50)) -> Path:
    """Write the user's own folder: random JPEGs, masks of 0, 1, 2 and 255."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for i in range(count):
        image = cv2.resize(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8), size[::-1])
        cv2.imwrite(str(root / f"images/{i:03d}.jpg"), image)
        cv2.imwrite(str(root / f"masks/{i:03d}.png"), rng.choice([0, 1, 2, 255], size).astype(np.uint8))
    (root / "classes.yaml").write_text(yaml.safe_dump({"classes": ["road", "car", "tree"]}))
    return root
