"""CamVid as first released: colours, groups, SegNet's split, and the one faulty mask."""

import os
import pickle
import re
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.catalog import BENCHMARKS
from datasets.readers.camvid import NAMES
from datasets.readers.camvid_full import CLASS_OF, COLOURS, FAULTY, GROUPS, camvid_full, segnet_split
from datasets.sample import DataError

FRAMES = ("0001TP_006690", "0001TP_008550", "0006R0_f00930", "0016E5_00390", "0016E5_07959", "Seq05VD_f02610")
VAL = [f"0016E5_{number:05d}" for number in range(7959, 8160, 2)]


def write_full(root: Path, colours: list[tuple[int, int, int]] | None = None) -> Path:
    """Write the original layout: frames of each sequence; a mask holds all colours or the given ones, one a column."""
    for name in ("701_StillsRaw_full", "LabeledApproved_full"):
        (root / name).mkdir(parents=True)
    mask = np.array([colours or list(COLOURS.values())] * 3, np.uint8)
    for frame in FRAMES:
        cv2.imwrite(str(root / f"701_StillsRaw_full/{frame}.png"), np.zeros_like(mask))
        cv2.imwrite(str(root / f"LabeledApproved_full/{frame}_L.png"), mask[..., ::-1])
    return root


class TestTable:
    def test_32_colours_each_in_one_group(self) -> None:
        assert len(COLOURS) == len(set(COLOURS.values())) == 32
        grouped = [name for group in GROUPS.values() for name in group]
        assert sorted([*grouped, "Void"]) == sorted(COLOURS)
        assert list(GROUPS) == list(NAMES) == list(camvid_full(Path()).classes)

    def test_known_members(self) -> None:
        classes = list(NAMES)
        assert classes[CLASS_OF[(128, 128, 192)]] == "pavement"  # the shoulder of a road
        assert classes[CLASS_OF[(128, 0, 192)]] == "road"  # a lane's marking
        assert classes[CLASS_OF[(64, 192, 0)]] == "building"  # a wall
        assert classes[CLASS_OF[(192, 0, 192)]] == "bicyclist"  # a scooter
        assert (0, 0, 0) not in CLASS_OF

    def test_a_class_has_the_colour_of_its_namesake(self) -> None:
        names = {"sky": "Sky", "building": "Building", "road": "Road", "tree": "Tree", "car": "Car"}
        assert {ours: COLOURS[theirs] for ours, theirs in names.items()} == {name: NAMES[name] for name in names}


class TestSplit:
    def test_counts_of_the_701_frames(self) -> None:
        """The frames' numbers as released: one a second of 30, and in one part 15 a second."""
        tp = [f"0001TP_{number:06d}" for number in range(6690, 10381, 30)]
        assert Counter(map(segnet_split, tp)) == {"train": 62, "test": 62}
        assert {segnet_split(frame) for frame in VAL} == {"val"}
        assert len(VAL) == 101
        assert segnet_split("0016E5_07920") == segnet_split("0016E5_08190") == segnet_split("0006R0_f00930") == "train"
        assert segnet_split("Seq05VD_f00000") == "test"

    @pytest.mark.data
    @pytest.mark.parametrize("split", ["train", "val"])
    def test_real_lists(self, camvid_root: Path, split: str) -> None:
        frames = [os.path.splitext(name)[0] for name in os.listdir(camvid_root / split)]
        assert {segnet_split(frame) for frame in frames} == {split}

    def test_by_name_where_there_are_no_lists(self, tmp_path: Path) -> None:
        benchmark = camvid_full(write_full(tmp_path))
        assert {split: [item.id for item in benchmark.index(split)] for split in benchmark.splits} == {
            "train": ["0001TP_006690", "0006R0_f00930", "0016E5_00390"],
            "val": ["0016E5_07959"],
            "test": ["0001TP_008550", "Seq05VD_f02610"],
        }
        assert benchmark.splits == {"train": 367, "val": 101, "test": 233}

    def test_by_list(self, tmp_path: Path) -> None:
        write_full(tmp_path)
        pair = "/SegNet/CamVid/train/0016E5_07959.png /SegNet/CamVid/trainannot/0016E5_07959.png\n"
        (tmp_path / "train.txt").write_text(pair + "0001TP_006690\n")
        (tmp_path / "test.txt").write_text("0001TP_999999\n")
        benchmark = camvid_full(tmp_path)
        assert [item.id for item in benchmark.index("train")] == ["0016E5_07959", "0001TP_006690"]
        with pytest.raises(DataError, match=r"1 file is missing:\n.*val\.txt"):
            benchmark.index("val")
        with pytest.raises(DataError, match=r"1 file is missing:\n.*0001TP_999999\.png"):
            benchmark.index("test")

    def test_folders_of_another_split_still_give_segnets(self, tmp_path: Path) -> None:
        write_full(tmp_path / "raw")
        for frame, split in zip(FRAMES, ("train", "train", "train", "val", "test", "test"), strict=True):
            for kind, suffix in (("701_StillsRaw_full", ""), ("LabeledApproved_full", "_L")):
                target = tmp_path / "own" / (split if not suffix else f"{split}_labels") / f"{frame}{suffix}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / "raw" / kind / f"{frame}{suffix}.png").rename(target)
        benchmark = camvid_full(tmp_path / "own")
        assert [item.id for item in benchmark.index("val")] == ["0016E5_07959"]
        assert [item.id for item in benchmark.index("test")] == ["0001TP_008550", "Seq05VD_f02610"]
        assert benchmark.read(benchmark.index("test")[0]).mask is not None

    def test_a_strange_frame(self, tmp_path: Path) -> None:
        write_full(tmp_path)
        cv2.imwrite(str(tmp_path / "701_StillsRaw_full/holiday.png"), np.zeros((3, 32, 3), np.uint8))
        with pytest.raises(DataError, match="holiday: no frame of CamVid"):
            camvid_full(tmp_path).index("train")

    def test_a_split_of_no_frame(self, tmp_path: Path) -> None:
        (write_full(tmp_path) / "701_StillsRaw_full/0016E5_07959.png").unlink()
        with pytest.raises(DataError, match="none of its 5 frames belongs to split val"):
            camvid_full(tmp_path).index("val")

    def test_a_mask_is_missing(self, tmp_path: Path) -> None:
        (write_full(tmp_path) / "LabeledApproved_full/0016E5_07959_L.png").unlink()
        with pytest.raises(DataError, match=r"1 file is missing:\n.*0016E5_07959_L\.png"):
            camvid_full(tmp_path).index("val")


class TestMasks:
    def test_every_colour_becomes_its_class(self, tmp_path: Path) -> None:
        benchmark = pickle.loads(pickle.dumps(camvid_full(write_full(tmp_path))))
        sample = benchmark.read(benchmark.index("val")[0])
        expected = [next((n for n, group in enumerate(GROUPS.values()) if name in group), 255) for name in COLOURS]
        np.testing.assert_array_equal(sample.mask, [expected] * 3)

    def test_another_colour_is_named_with_its_pixel(self, tmp_path: Path) -> None:
        benchmark = camvid_full(write_full(tmp_path, [(128, 128, 128), (128, 0, 0), (128, 1, 0), (9, 9, 9)]))
        message = r"0016E5_07959_L\.png: colour [128, 1, 0] at row 0, column 2 (6 such pixels)".replace("\\.", ".")
        with pytest.raises(DataError, match=re.escape(message)):
            benchmark.read(benchmark.index("val")[0])

    def test_the_faulty_mask_of_the_release_is_read(self, tmp_path: Path) -> None:
        benchmark = camvid_full(write_full(tmp_path, [(128, 128, 128), (26, 26, 26), (128, 128, 77)]))
        item = benchmark.index("test")[1]
        assert item.id == FAULTY
        np.testing.assert_array_equal(benchmark.read(item).mask, [[0, 255, 255]] * 3)

    def test_the_small_release_is_told_apart(self, tmp_path: Path) -> None:
        """An index mask is refused where colours are expected, and the other way round."""
        benchmark = camvid_full(write_full(tmp_path))
        item = benchmark.index("val")[0]
        cv2.imwrite(str(item.label), np.zeros((3, 32), np.uint8))
        with pytest.raises(DataError, match="mask of mode L; expected is an RGB PNG"):
            benchmark.read(item)
        small = BENCHMARKS["camvid"](tmp_path)
        with pytest.raises(DataError, match="valannot"):
            small.index("val")
