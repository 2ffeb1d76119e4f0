"""Small benchmarks in the original layouts."""

import os
from pathlib import Path

import pytest
from miniatures import write_own

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


@pytest.fixture
def own(tmp_path: Path) -> Benchmark:
    return folder(write_own(tmp_path / "own"))
