"""ADE20K, on a miniature of the challenge's release."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from miniatures import litter, through_shards, values, write_image, write_mask

from datasets.catalog import BENCHMARKS
from datasets.readers.ade20k import CLASSES, PALETTE, ade20k
from datasets.sample import DataError

STORED = values(*range(151), size=(12, 16))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a blank in its name: three images for training, one of them grey, and two for validation."""
    data = tmp_path / "scene parsing" / "ADEChallengeData2016"
    for folder, name, count in (("training", "train", 3), ("validation", "val", 2)):
        for i in range(1, count + 1):
            write_image(data / f"images/{folder}/ADE_{name}_{i:08d}.jpg", grey=i == 2)
            write_mask(data / f"annotations/{folder}/ADE_{name}_{i:08d}.png", STORED)
    return data.parent


def test_published_names_and_colours() -> None:
    assert len(CLASSES) == len(set(CLASSES)) == len(PALETTE) == 150
    assert (CLASSES[0], CLASSES[12], CLASSES[20], CLASSES[149]) == ("wall", "person", "car", "flag")
    assert PALETTE[:3] == ((120, 120, 120), (180, 120, 120), (6, 230, 230))
    assert (PALETTE[12], PALETTE[20], PALETTE[149]) == ((150, 5, 61), (0, 102, 200), (92, 0, 255))
    twice = [colour for colour, count in Counter(PALETTE).items() if count > 1]
    assert [[CLASSES[k] for k in range(150) if PALETTE[k] == c] for c in twice] == [["road", "skyscraper"]]


def test_values_become_classes_bit_for_bit(root: Path, tmp_path: Path) -> None:
    shards = through_shards(BENCHMARKS["ade20k"](root), "train", tmp_path)
    assert shards.ids == ["ADE_train_00000001", "ADE_train_00000002", "ADE_train_00000003"]
    expected = np.where(STORED == 0, 255, STORED - 1)
    for i in range(3):
        image, mask = shards.sample(i)
        np.testing.assert_array_equal(mask, expected)
        assert image.shape == (12, 16, 3)
    assert shards.manifest.official_rows == 20210
    original = (root / "ADEChallengeData2016/images/training/ADE_train_00000002.jpg").read_bytes()
    assert shards.encoded(1)[0] == original  # the grey one


def test_either_root_links_and_litter(root: Path, tmp_path: Path) -> None:
    (tmp_path / "a link").symlink_to(root / "ADEChallengeData2016", target_is_directory=True)
    for folder in ("images/training", "annotations/training"):
        litter(root / "ADEChallengeData2016" / folder, "ADE_train_00000001.jpg")
        litter(root / "ADEChallengeData2016" / folder, "ADE_train_00000001.png")
    for source in (root, root / "ADEChallengeData2016", tmp_path / "a link"):
        assert [len(ade20k(source).index(split)) for split in ("train", "val")] == [3, 2]


def test_missing_on_either_side(root: Path) -> None:
    data = root / "ADEChallengeData2016"
    (data / "annotations/training/ADE_train_00000003.png").unlink()
    (data / "images/training/ADE_train_00000001.jpg").unlink()
    with pytest.raises(DataError, match="2 files are missing") as caught:
        ade20k(root).index("train")
    for part in ("images/training/ADE_train_00000001.jpg", "annotations/training/ADE_train_00000003.png", "20210"):
        assert part in str(caught.value)


def test_first_ten_missing_are_named(root: Path) -> None:
    for i in range(10, 22):
        write_image(root / f"ADEChallengeData2016/images/validation/ADE_val_{i:08d}.jpg")
    with pytest.raises(DataError, match=r"12 files are missing(.|\n)*00000019\.png(.|\n)*and 2 more"):
        ade20k(root).index("val")


@pytest.mark.parametrize("place", ["ADEChallengeData2016/images/testing", "release_test/testing"])
def test_test_split_has_no_labels(root: Path, tmp_path: Path, place: str) -> None:
    with pytest.raises(DataError, match="images/testing, "):
        ade20k(root).index("test")
    write_image(root / place / "ADE_test_00000001.jpg")
    shards = through_shards(ade20k(root), "test", tmp_path)
    assert (shards.ids, shards.encoded(0)[1]) == (["ADE_test_00000001"], None)
    assert not shards.manifest.labelled


def test_value_beyond_150(root: Path) -> None:
    item = ade20k(root).index("val")[0]
    write_mask(Path(str(item.label)), values(151))
    with pytest.raises(DataError, match=r"ADE_val_00000001\.png: label value 151 .*allowed are 0-150\."):
        ade20k(root).read(item)


def test_mask_of_colours_and_of_another_size(root: Path) -> None:
    first, second = ade20k(root).index("val")
    write_mask(Path(str(first.label)), np.zeros((12, 16, 3), np.uint8))
    with pytest.raises(DataError, match="mode RGB"):
        ade20k(root).read(first)
    write_mask(Path(str(second.label)), np.ones((16, 12), np.uint8))
    with pytest.raises(DataError, match=r"image is 16x12 pixels .* its mask 12x16"):
        ade20k(root).read(second)


def test_unknown_split_and_wrong_folder(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ade20k has no split 'validation'; allowed are train, val, test"):
        ade20k(root).index("validation")
    with pytest.raises(DataError, match=r"no folder .*/images; one must be there"):
        ade20k(tmp_path / "nowhere").index("train")
    for folder in ("images", "annotations"):
        (tmp_path / "empty" / folder / "training").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no file \*\.jpg"):
        ade20k(tmp_path / "empty").index("train")
