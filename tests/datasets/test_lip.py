"""Look Into Person, on a miniature of its release."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from datasets.readers.lip import FLIP_PAIRS, NAMES, lip
from datasets.sample import DataError

IDS = {"train": ("77_471474", "100_900100102349"), "val": ("100034_483681",), "test": ("100012_501646",)}
LABELS = np.arange(20, dtype=np.uint8).reshape(4, 5)


def write_lip(root: Path, deep: bool) -> Path:
    """Write the original layout; where `deep`, as unpacked archives give it, each in a folder of its own name."""
    for split, ids in IDS.items():
        name = "Testing_images" if split == "test" else "TrainVal_images"
        images, masks = root / name, root / "TrainVal_parsing_annotations"
        if deep:
            images, masks = images / name, masks / masks.name / masks.name
        shown = images / ("testing_images" if split == "test" else f"{split}_images")
        masks = masks / f"{split}_segmentations"
        for folder in (shown, masks):
            folder.mkdir(parents=True)
        (images / f"{split}_id.txt").write_text("\n".join(ids) + "\n")
        for key in ids:
            cv2.imwrite(str(shown / f"{key}.jpg"), np.zeros((4, 5, 3), np.uint8))
            if split != "test":
                Image.fromarray(LABELS).save(masks / f"{key}.png")
    return root


def test_20_classes_and_their_sides() -> None:
    names = list(NAMES)
    assert len(names) == len(set(NAMES.values())) == 20
    assert {k: names[k] for k in (0, 2, 5, 9, 13)} == {
        0: "background", 2: "hair", 5: "upper-clothes", 9: "pants", 13: "face"
    }  # fmt: skip
    assert [(names[a], names[b]) for a, b in FLIP_PAIRS] == [
        ("left-arm", "right-arm"), ("left-leg", "right-leg"), ("left-shoe", "right-shoe")
    ]  # fmt: skip
    sided = {k for k, name in enumerate(names) if name.startswith(("left-", "right-"))}
    assert {k for pair in lip(Path()).flip_pairs for k in pair} == sided


@pytest.mark.parametrize("deep", [False, True])
def test_splits(tmp_path: Path, deep: bool) -> None:
    benchmark = pickle.loads(pickle.dumps(lip(write_lip(tmp_path / "LIP data", deep))))
    assert benchmark.splits == {"train": 30462, "val": 10000, "test": 10000}
    for split, ids in IDS.items():
        items = benchmark.index(split)
        assert tuple(item.id for item in items) == ids
        mask = benchmark.read(items[-1]).mask
        if split == "test":
            assert mask is None
        else:
            np.testing.assert_array_equal(mask, LABELS)


def test_a_label_outside_the_table(tmp_path: Path) -> None:
    benchmark = lip(write_lip(tmp_path, deep=False))
    item = benchmark.index("val")[0]
    labels = LABELS.copy()
    labels[2, 3] = 20
    Image.fromarray(labels).save(str(item.label))
    with pytest.raises(DataError, match=r"label value 20 at row 2, column 3 .*allowed are 0-19, 255"):
        benchmark.read(item)


def test_missing_parts(tmp_path: Path) -> None:
    write_lip(tmp_path, deep=False)
    (tmp_path / "TrainVal_parsing_annotations/train_segmentations/77_471474.png").unlink()
    with pytest.raises(DataError, match=r"1 file is missing:\n.*77_471474\.png"):
        lip(tmp_path).index("train")
    (tmp_path / "TrainVal_images/train_id.txt").unlink()
    with pytest.raises(DataError, match=r"1 file is missing:\n.*TrainVal_images/train_id\.txt"):
        lip(tmp_path).index("train")
    (tmp_path / "Testing_images").rename(tmp_path / "testing_images")
    with pytest.raises(DataError, match="rename it to Testing_images"):
        lip(tmp_path).index("test")
