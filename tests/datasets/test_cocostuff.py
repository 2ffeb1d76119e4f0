"""COCO-Stuff, on miniatures of its two releases: .mat files of 10K, PNGs of 164K."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miniatures import litter, through_shards, values, write_image, write_mask
from scipy.io import savemat

from datasets.catalog import BENCHMARKS
from datasets.readers.cocostuff import CLASSES, IDS, PALETTE, cocostuff10k, cocostuff164k
from datasets.sample import DataError

NAMES = np.array([f"label {number}" for number in range(1, 183)], object).reshape(-1, 1)
IN_USE = values(0, *IDS, dtype=np.uint16)
STEM = "COCO_train2014_000000000077"


def write_mat(path: Path, labels: Any, **others: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"S": labels, "names": NAMES, "regionMapStuff": np.ones((12, 16), np.uint16), **others}
    savemat(path, content, do_compression=True)


@pytest.fixture
def ten(tmp_path: Path) -> Path:
    """Release 1.1 of COCO-Stuff 10K: three images, one of them for test."""
    root = tmp_path / "coco stuff" / "cocostuff-10k-v1.1"
    (root / "imageLists").mkdir(parents=True)
    lists = {"train": ["077", "113"], "test": ["260"], "all": ["077", "113", "260"]}
    for split, ends in lists.items():
        (root / f"imageLists/{split}.txt").write_text("".join(f"COCO_train2014_000000000{end}\n" for end in ends))
    for end in lists["all"]:
        write_image(root / f"images/COCO_train2014_000000000{end}.jpg")
        write_mat(root / f"annotations/COCO_train2014_000000000{end}.mat", IN_USE)
    return root


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """COCO-Stuff on COCO 2017: two images for training, one for validation."""
    root = tmp_path / "coco 2017"
    for folder, number in (("train2017", 9), ("train2017", 25), ("val2017", 139)):
        write_image(root / f"{folder}/{number:012d}.jpg")
        stored = values(255, *(i - 1 for i in IDS))
        write_mask(root / f"stuffthingmaps_trainval2017/{folder}/{number:012d}.png", stored)
    return root


class TestLabels:
    def test_eleven_ids_are_unused(self) -> None:
        assert len(CLASSES) == len(set(CLASSES)) == len(IDS) == len(set(PALETTE)) == 171
        assert sorted(set(range(1, 183)) - set(IDS)) == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91]

    def test_names_have_their_ids(self) -> None:
        named = dict(zip(IDS, CLASSES, strict=True))
        known = {
            1: "person", 11: "fire hydrant", 13: "stop sign", 27: "backpack", 44: "bottle", 67: "dining table",
            90: "toothbrush", 92: "banner", 110: "desk-stuff", 133: "mirror-stuff", 157: "sky-other", 165: "table",
            182: "wood",
        }  # fmt: skip
        assert {number: named[number] for number in known} == known
        assert (CLASSES.index("toothbrush"), CLASSES.index("banner")) == (79, 80)  # 80 things, then 91 kinds of stuff


class Test10k:
    def test_ids_become_classes_bit_for_bit(self, ten: Path, tmp_path: Path) -> None:
        shards = through_shards(BENCHMARKS["cocostuff10k"](ten.parent), "train", tmp_path)
        assert shards.ids == [STEM, "COCO_train2014_000000000113"]
        expected = values(255, *range(171))
        for i in range(2):
            np.testing.assert_array_equal(shards.sample(i)[1], expected)
        assert [len(cocostuff10k(ten).index(split)) for split in ("train", "test")] == [2, 1]

    @pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float64])
    def test_any_type_of_number(self, ten: Path, dtype: type) -> None:
        write_mat(ten / f"annotations/{STEM}.mat", IN_USE.astype(dtype))
        item = cocostuff10k(ten).index("train")[0]
        np.testing.assert_array_equal(cocostuff10k(ten).read(item).mask, values(255, *range(171)))

    @pytest.mark.parametrize(
        ("labels", "match"),
        [
            (values(1, 12, dtype=np.uint16), "label value 12 at row 0, column 1"),
            (values(183, dtype=np.uint16), "label value 183"),
            (values(258, dtype=np.uint16), "label value 258 .*allowed are 0-11, 13-25, 27-28"),  # 2 in 8 bits
            (values(65537, dtype=np.int32), "label value 65537 .*0-65535"),  # 1 in 16 bits
            (values(-1, dtype=np.int16), "label value -1 "),
            (values(1, dtype=np.float64) + 0.5, r"label value 1\.5 "),
            (values(1, dtype=np.float64) * np.nan, "label value nan "),
            (np.ones((12, 16, 3), np.uint8), r"S is uint8 \(12, 16, 3\)"),
            (np.array([["a"]], object), "S is object"),
        ],
    )
    def test_wrong_values_never_wrap(self, ten: Path, labels: np.ndarray, match: str) -> None:
        write_mat(ten / f"annotations/{STEM}.mat", labels)
        with pytest.raises(DataError, match=rf"{STEM}\.mat: {match}"):
            cocostuff10k(ten).read(cocostuff10k(ten).index("train")[0])

    def test_release_one_is_refused(self, ten: Path) -> None:
        write_mat(ten / f"annotations/{STEM}.mat", values(1, 2, dtype=np.uint16), names=NAMES[:172])
        with pytest.raises(DataError, match=r"release 1\.0.*fetch 1\.1"):
            cocostuff10k(ten).read(cocostuff10k(ten).index("train")[0])

    def test_damaged_mat_no_variable_and_two_sizes(self, ten: Path) -> None:
        item, path = cocostuff10k(ten).index("train")[0], ten / f"annotations/{STEM}.mat"
        path.write_bytes(path.read_bytes()[:300])
        with pytest.raises(DataError, match=r"077\.mat: the \.mat file does not read"):
            cocostuff10k(ten).read(item)
        savemat(path, {"T": IN_USE})
        with pytest.raises(DataError, match="no variable S"):
            cocostuff10k(ten).read(item)
        write_mat(path, IN_USE.T)
        with pytest.raises(DataError, match=r"image is 16x12 pixels .* its mask 12x16"):
            cocostuff10k(ten).read(item)

    def test_missing_files(self, ten: Path, tmp_path: Path) -> None:
        (ten / f"annotations/{STEM}.mat").unlink()
        (ten / "images/COCO_train2014_000000000113.jpg").unlink()
        with pytest.raises(DataError, match=r"2 files are missing:\n.*077\.mat\n.*113\.jpg"):
            cocostuff10k(ten).index("train")
        (ten / "imageLists/test.txt").unlink()
        with pytest.raises(DataError, match=r"1 file is missing:\n.*test\.txt"):
            cocostuff10k(ten).index("test")
        with pytest.raises(DataError, match=r"no folder .*imageLists"):
            cocostuff10k(tmp_path).index("train")
        with pytest.raises(DataError, match="cocostuff10k has no split 'val'; allowed are train, test"):
            cocostuff10k(ten).index("val")


class Test164k:
    def test_values_become_classes_bit_for_bit(self, many: Path, tmp_path: Path) -> None:
        shards = through_shards(BENCHMARKS["cocostuff164k"](many), "train", tmp_path)
        assert shards.ids == ["000000000009", "000000000025"]
        for i in range(2):
            np.testing.assert_array_equal(shards.sample(i)[1], values(255, *range(171)))

    def test_the_folders_of_the_authors(self, many: Path, tmp_path: Path) -> None:
        (many / "images").mkdir()
        for folder in ("train2017", "val2017"):
            (many / folder).rename(many / "images" / folder)
            litter(many / "images" / folder, "000000000009.jpg")
            litter(many / "stuffthingmaps_trainval2017" / folder, "000000000009.png")
        (many / "stuffthingmaps_trainval2017").rename(tmp_path / "maps")
        (many / "annotations").symlink_to(tmp_path / "maps", target_is_directory=True)
        write_mask(many / "annotations/train2017/000000000009_labelTrainIds.png", values(0))
        assert [len(cocostuff164k(many).index(split)) for split in ("train", "val")] == [2, 1]

    def test_unused_value(self, many: Path) -> None:
        item = cocostuff164k(many).index("val")[0]
        write_mask(Path(str(item.label)), values(10, 11))
        with pytest.raises(DataError, match=r"139\.png: label value 11 .*allowed are 0-10, 12-24, 26-27"):
            cocostuff164k(many).read(item)

    def test_missing_files(self, many: Path) -> None:
        (many / "train2017/000000000009.jpg").unlink()
        (many / "stuffthingmaps_trainval2017/val2017/000000000139.png").unlink()
        with pytest.raises(DataError, match=r"1 file is missing:\n.*000000000009\.jpg"):
            cocostuff164k(many).index("train")
        with pytest.raises(DataError, match=r"1 file is missing:\n.*000000000139\.png"):
            cocostuff164k(many).index("val")
        (many / "val2017").rename(many / "elsewhere")
        with pytest.raises(DataError, match=r"no folder .*val2017, .*images/val2017"):
            cocostuff164k(many).index("val")
        with pytest.raises(DataError, match="no split 'test'; allowed are train, val"):
            cocostuff164k(many).index("test")
