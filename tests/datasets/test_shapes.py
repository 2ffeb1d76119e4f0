"""The bundled sample."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from datasets.readers.voc import voc12
from datasets.sample import DataError
from datasets.shapes import write_sample

SMALL = {"coco": 4, "coco_val": 2, "train": 3, "aug": 5, "val": 20}


def digest(root: Path) -> dict[str, str]:
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


def test_one_seed_gives_the_same_bytes_and_a_complete_sample_is_kept(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_sample(tmp_path / name, 1, **SMALL)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    before = (tmp_path / "a/sample.json").stat().st_mtime_ns
    write_sample(tmp_path / "a", 1, **SMALL)
    assert (tmp_path / "a/sample.json").stat().st_mtime_ns == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    with pytest.raises(DataError, match="name another folder"):
        write_sample(tmp_path / "a", 2, **SMALL)


def test_other_files_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("mine")
    with pytest.raises(DataError, match="holds no sample"):
        write_sample(tmp_path, **SMALL)


def test_every_class_occurs_in_val(tmp_path: Path) -> None:
    write_sample(tmp_path / "s", **SMALL)
    voc = voc12(tmp_path / "s")
    masks = [voc.read(item).mask for item in voc.index("val")]
    assert {int(v) for mask in masks for v in np.unique(mask)} == {*range(21), 255}
