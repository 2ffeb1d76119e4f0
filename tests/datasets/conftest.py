"""Small benchmarks in the original layouts."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from datasets.readers.folder import folder
from datasets.sample import Benchmark
from datasets.shapes import write_sample


@pytest.fixture(scope="session")
def sample_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sample") / "sample"
    write_sample(root, seed=3, coco=24, coco_val=6, train=8, aug=14, val=6)
    return root


@pytest.fixture(scope="session")
def camvid_root() -> Path:
    if "CAMVID" not in os.environ:
        pytest.skip("CAMVID names no folder of CamVid")
    return Path(os.environ["CAMVID"])


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


@pytest.fixture
def own(tmp_path: Path) -> Benchmark:
    return folder(write_own(tmp_path / "own"))
