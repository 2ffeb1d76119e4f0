"""Mapillary Vistas, on a miniature of its release: the layout of 1.2, and that of 2.0 with the labels of 1.2."""

import json
from pathlib import Path

import numpy as np
import pytest
from miniatures import litter, through_shards, values, write_image, write_mask

from datasets.catalog import BENCHMARKS
from datasets.readers.mapillary import NAMES, UNLABELED, mapillary
from datasets.sample import DataError

KEYS = {"training": ("_0bKYq", "zz-Top9"), "validation": ("AbC_d-1",), "testing": ("Q3_x",)}
STORED = values(*range(66))


def write_release(root: Path, newer: bool = False) -> Path:
    """Write config.json, images and labels; `newer` as release 2.0 has them, next to its own labels."""
    labels = [
        {"readable": name, "color": colour, "evaluate": True, "instances": False} for name, colour in NAMES.items()
    ]
    labels.append({"readable": UNLABELED, "color": [0, 0, 0], "evaluate": False, "instances": False})
    root.mkdir(parents=True, exist_ok=True)
    (root / ("config_v1.2.json" if newer else "config.json")).write_text(json.dumps({"labels": labels, "version": 1.2}))
    if newer:
        (root / "config_v2.0.json").write_text(json.dumps({"labels": labels[:1] * 124, "version": 2.0}))
    for folder, keys in KEYS.items():
        for key in keys:
            write_image(root / folder / "images" / f"{key}.jpg")
            if folder != "testing":
                write_mask(root / folder / ("v1.2/labels" if newer else "labels") / f"{key}.png", STORED)
                write_mask(root / folder / ("v2.0/labels" if newer else "instances") / f"{key}.png", values(120))
    return root


def test_published_names_counts_and_colours() -> None:
    benchmark = mapillary(Path())
    assert len(benchmark.classes) == len(set(benchmark.classes)) == len(set(benchmark.palette)) == 65
    assert {k: benchmark.classes[k] for k in (0, 13, 19, 27, 30, 45, 55, 64)} == {
        0: "Bird", 13: "Road", 19: "Person", 27: "Sky", 30: "Vegetation", 45: "Pole", 55: "Car", 64: "Ego Vehicle",
    }  # fmt: skip
    assert [benchmark.palette[k] for k in (13, 27, 55)] == [(128, 64, 128), (70, 130, 180), (0, 0, 142)]
    assert benchmark.splits == {"train": 18000, "val": 2000, "test": 5000}


@pytest.mark.parametrize("newer", [False, True])
def test_labels_bit_for_bit(tmp_path: Path, newer: bool) -> None:
    root = write_release(tmp_path / "the release", newer)
    litter(root / "training/images", "_0bKYq.jpg")
    shards = through_shards(BENCHMARKS["mapillary"](root), "train", tmp_path)
    assert shards.ids == ["_0bKYq", "zz-Top9"]
    np.testing.assert_array_equal(shards.sample(0)[1], np.where(STORED == 65, 255, STORED))
    assert [item.id for item in mapillary(root).index("val")] == ["AbC_d-1"]
    (item,) = mapillary(root).index("test")
    assert mapillary(root).read(item).mask is None


def test_other_labels_are_refused(tmp_path: Path) -> None:
    root = write_release(tmp_path)
    page = json.loads((root / "config.json").read_text())
    page["labels"][2]["readable"] = "Kerb"
    (root / "config.json").write_text(json.dumps(page))
    with pytest.raises(
        DataError, match=r"config\.json: 66 labels, value 2 is 'Kerb', evaluate True; expected are the 66"
    ):
        mapillary(root).index("train")
    page["labels"] = page["labels"][:2]
    (root / "config.json").write_text(json.dumps(page))
    with pytest.raises(DataError, match="2 labels, value 2 is nothing"):
        mapillary(root).index("train")
    (root / "config.json").write_text("[]")
    with pytest.raises(DataError, match=r"config\.json: no list of labels"):
        mapillary(root).index("train")
    (root / "config.json").unlink()
    with pytest.raises(DataError, match=r"1 file is missing:\n.*config\.json"):
        mapillary(root).index("train")


def test_missing_files_and_values(tmp_path: Path) -> None:
    root = write_release(tmp_path)
    item = mapillary(root).index("val")[0]
    write_mask(Path(str(item.label)), values(13, 66))
    with pytest.raises(DataError, match=r"label value 66 at row 0, column 1 .*allowed are 0-65\."):
        mapillary(root).read(item)
    (root / "training/labels/zz-Top9.png").unlink()
    with pytest.raises(DataError, match=r"1 file is missing:\n.*labels/zz-Top9\.png"):
        mapillary(root).index("train")
    with pytest.raises(DataError, match="no split 'trainval'"):
        mapillary(root).index("trainval")
