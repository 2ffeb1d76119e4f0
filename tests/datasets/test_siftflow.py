"""SIFT Flow, on a miniature of its release, with MATLAB files that SciPy wrote."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from datasets.readers.siftflow import BARE, CLASSES, PALETTE, SCENES, siftflow
from datasets.sample import DataError

TRAIN, TEST = ("coast_bea10", "forest_for15", "street_art861", *BARE), ("street_par177", "coast_natu975")


def cells(names: tuple[str, ...]) -> np.ndarray:
    """A MATLAB cell array, one column of names."""
    column = np.empty((len(names), 1), object)
    column[:, 0] = names
    return column


def write_scene(path: Path, labels: np.ndarray, names: tuple[str, ...] = CLASSES) -> None:
    savemat(path, {"S": labels, "names": cells(names), "metaData": {"a": 1}}, do_compression=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "my data" / "SiftFlowDataset"
    images, masks = root / "Images" / SCENES, root / "SemanticLabels" / SCENES
    for folder in (images, masks):
        folder.mkdir(parents=True)
    labels = np.arange(34, dtype=np.uint8).reshape(2, 17)
    for scene in (*TRAIN, *TEST):
        cv2.imwrite(str(images / f"{scene}.jpg"), np.zeros((2, 17, 3), np.uint8))
        write_scene(masks / f"{scene}.mat", labels if scene not in BARE else np.zeros_like(labels))
    (images / "Thumbs.db").touch()
    (root / "TestSet1.txt").write_bytes(b"".join(f"{SCENES}\\{scene}.jpg\r\n".encode() for scene in TEST))
    return root


def test_33_classes() -> None:
    assert len(CLASSES) == len(set(CLASSES)) == len(set(PALETTE)) == 33
    assert (0, 0, 0) not in PALETTE
    assert list(CLASSES) == sorted(CLASSES)
    numbered = {1: "awning", 9: "cow", 11: "desert", 16: "moon", 22: "road", 28: "sky", 33: "window"}
    assert {value: CLASSES[value - 1] for value in numbered} == numbered


@pytest.mark.parametrize("inside", [".", ".."])
def test_split_by_the_list(root: Path, inside: str) -> None:
    benchmark = siftflow(root / inside)
    assert [item.id for item in benchmark.index("test")] == list(TEST)
    assert [item.id for item in benchmark.index("train")] == sorted(TRAIN)
    assert benchmark.splits == {"train": 2488, "test": 200}
    assert "500" in benchmark.tree


def test_unlabelled_is_ignored_and_values_count_from_one(root: Path) -> None:
    benchmark = pickle.loads(pickle.dumps(siftflow(root)))
    mask = benchmark.read(benchmark.index("test")[0]).mask
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask.reshape(-1), [255, *range(33)])


def test_the_files_own_order_of_names_counts(root: Path) -> None:
    benchmark = siftflow(root)
    item = benchmark.index("test")[0]
    write_scene(Path(str(item.label)), np.full((2, 17), 2, np.uint8), ("sky", "cow"))
    assert set(np.unique(benchmark.read(item).mask)) == {CLASSES.index("cow")}
    write_scene(Path(str(item.label)), np.full((2, 17), 3, np.uint8), ("sky", "cow"))
    with pytest.raises(DataError, match=r"label value 3 at row 0, column 0 .*allowed are 0-2"):
        benchmark.read(item)
    write_scene(Path(str(item.label)), np.full((2, 17), 1, np.uint8), ("zebra",))
    with pytest.raises(DataError, match="names a class 'zebra'"):
        benchmark.read(item)


@pytest.mark.parametrize("value", [-1, 300, 1.5])
def test_values_are_never_wrapped_or_rounded(root: Path, value: float) -> None:
    benchmark = siftflow(root)
    item = benchmark.index("test")[0]
    labels = np.ones((2, 17), np.float64 if isinstance(value, float) else np.int16)
    labels[1, 3] = value
    write_scene(Path(str(item.label)), labels)
    with pytest.raises(DataError, match=rf"S holds {value}; allowed are whole numbers"):
        benchmark.read(item)


def test_labels_saved_as_double_are_read(root: Path) -> None:
    benchmark = siftflow(root)
    item = benchmark.index("test")[0]
    write_scene(Path(str(item.label)), np.full((2, 17), 33.0))
    assert set(np.unique(benchmark.read(item).mask)) == {32}


def test_damaged_or_foreign_mat(root: Path) -> None:
    benchmark = siftflow(root)
    item = benchmark.index("test")[0]
    for write in (lambda p: p.write_bytes(b"no matrix"), lambda p: savemat(p, {"S": np.ones((2, 17))})):
        write(Path(str(item.label)))
        with pytest.raises(DataError, match=r"street_par177\.mat: no SIFT Flow mask"):
            benchmark.read(item)


def test_missing_files(root: Path) -> None:
    masks = root / "SemanticLabels" / SCENES
    (masks / f"{BARE[0]}.mat").unlink()
    assert len(siftflow(root).index("train")) == len(TRAIN) - 1
    (masks / "coast_bea10.mat").unlink()
    with pytest.raises(DataError, match=r"1 file is missing:\n.*coast_bea10\.mat"):
        siftflow(root).index("train")
    (root / "Images" / SCENES / "street_par177.jpg").unlink()
    with pytest.raises(DataError, match=r"1 file is missing:\n.*street_par177\.jpg"):
        siftflow(root).index("test")
