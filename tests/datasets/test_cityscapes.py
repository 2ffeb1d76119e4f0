"""Cityscapes, on a miniature of its release: two cities for training, one for validation, one for the test server."""

from pathlib import Path

import numpy as np
import pytest
from miniatures import litter, through_shards, values, write_image, write_mask

from datasets.catalog import BENCHMARKS
from datasets.readers.cityscapes import cityscapes
from datasets.sample import DataError

TRAIN_IDS = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14,
    28: 15, 31: 16, 32: 17, 33: 18,
}  # fmt: skip
STORED = values(*range(34), 255)


def write_frame(root: Path, split: str, city: str, frame: int, mask: np.ndarray = STORED) -> None:
    stem = f"{city}_{frame:06d}_000019"
    write_image(root / f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png")
    labels = root / f"gtFine/{split}/{city}"
    write_mask(labels / f"{stem}_gtFine_labelIds.png", mask)
    write_mask(labels / f"{stem}_gtFine_instanceIds.png", mask.astype(np.uint16) * 1000)
    write_mask(labels / f"{stem}_gtFine_color.png", np.zeros((*mask.shape, 4), np.uint8))
    (labels / f"{stem}_gtFine_polygons.json").write_text("{}")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "city scapes"
    for split, city, frame in (
        ("train", "zurich", 0), ("train", "aachen", 1), ("train", "aachen", 0),
        ("val", "frankfurt", 0), ("test", "berlin", 0),
    ):  # fmt: skip
        write_frame(root, split, city, frame)
    return root


def test_published_names_and_colours(root: Path) -> None:
    benchmark = cityscapes(root)
    assert len(benchmark.classes) == len(benchmark.palette) == 19
    assert benchmark.classes == (
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
        "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    )  # fmt: skip
    assert [benchmark.palette[k] for k in (0, 1, 10, 13, 18)] == [
        (128, 64, 128), (244, 35, 232), (70, 130, 180), (0, 0, 142), (119, 11, 32)
    ]  # fmt: skip
    assert benchmark.splits == {"train": 2975, "val": 500, "trainval": 3475, "test": 1525}


def test_train_ids_bit_for_bit(root: Path, tmp_path: Path) -> None:
    shards = through_shards(BENCHMARKS["cityscapes"](root), "trainval", tmp_path)
    cities = ["aachen_000000_000019", "aachen_000001_000019", "zurich_000000_000019", "frankfurt_000000_000019"]
    assert shards.ids == cities
    expected = np.array([[TRAIN_IDS.get(int(v), 255) for v in row] for row in STORED], np.uint8)
    for i in range(4):
        np.testing.assert_array_equal(shards.sample(i)[1], expected)


def test_the_masks_of_the_test_split_are_not_read(root: Path, tmp_path: Path) -> None:
    shards = through_shards(cityscapes(root), "test", tmp_path)
    assert (shards.ids, shards.encoded(0)[1]) == (["berlin_000000_000019"], None)


def test_litter_links_and_converted_masks(root: Path, tmp_path: Path) -> None:
    litter(root / "leftImg8bit/train", "aachen")
    litter(root / "leftImg8bit/train/aachen", "aachen_000000_000019_leftImg8bit.png")
    litter(root / "gtFine/train/aachen", "aachen_000000_000019_gtFine_labelIds.png")
    write_mask(root / "gtFine/train/aachen/aachen_000000_000019_gtFine_labelTrainIds.png", values(0))
    (root / "gtFine/train/aachen").rename(tmp_path / "elsewhere")
    (root / "gtFine/train/aachen").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "link").symlink_to(root, target_is_directory=True)
    assert [len(cityscapes(tmp_path / "link").index(split)) for split in ("train", "val", "test")] == [3, 1, 1]


def test_missing_on_either_side(root: Path) -> None:
    (root / "gtFine/train/zurich/zurich_000000_000019_gtFine_labelIds.png").unlink()
    (root / "leftImg8bit/train/aachen/aachen_000001_000019_leftImg8bit.png").unlink()
    for split, match in (("train", r"1 file is missing:\n.*aachen_000001"), ("trainval", "aachen_000001")):
        with pytest.raises(DataError, match=match):
            cityscapes(root).index(split)
    write_frame(root, "train", "aachen", 1)
    with pytest.raises(DataError, match=r"1 file is missing:\n.*zurich_000000_000019_gtFine_labelIds\.png"):
        cityscapes(root).index("train")


def test_a_city_without_labels(root: Path) -> None:
    (root / "gtFine/val/frankfurt").rename(root / "gtFine/frankfurt")
    with pytest.raises(DataError, match=r"frankfurt_000000_000019_gtFine_labelIds\.png"):
        cityscapes(root).index("val")
    (root / "gtFine/val").rmdir()
    with pytest.raises(DataError, match=r"1 file is missing:\n.*gtFine/val\n"):
        cityscapes(root).index("val")


def test_wrong_masks(root: Path) -> None:
    item = cityscapes(root).index("val")[0]
    path = Path(str(item.label))
    write_mask(path, values(7, 26001, dtype=np.uint16))  # instance ids under the name of label ids
    with pytest.raises(DataError, match=r"_gtFine_labelIds\.png: .*(of at most 8 bits|of 16 bits may hold 0-255)"):
        cityscapes(root).read(item)
    write_mask(path, values(7, 34))
    with pytest.raises(DataError, match=r"label value 34 at row 0, column 1 .*allowed are 0-33, 255\."):
        cityscapes(root).read(item)
    write_mask(path, values(7, size=(6, 8)))
    with pytest.raises(DataError, match=r"image is 16x12 pixels .* its mask 8x6"):
        cityscapes(root).read(item)


def test_unknown_split_and_empty_folder(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no split 'train_extra'; allowed are train, val, trainval, test"):
        cityscapes(root).index("train_extra")
    (tmp_path / "empty/leftImg8bit/test/berlin").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no file \*/\*_leftImg8bit\.png in it"):
        cityscapes(tmp_path / "empty").index("test")
