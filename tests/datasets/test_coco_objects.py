"""COCO's objects: instances and panoptic segments, on miniatures of the released files."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle_api

from datasets.readers.coco import coco_voc
from datasets.readers.coco_categories import STUFF, THINGS
from datasets.readers.coco_instances import CLASSES, PALETTE, coco_instances
from datasets.readers.coco_panoptic import CATEGORIES, coco_panoptic
from datasets.sample import DataError, Sample
from datasets.shapes import run_lengths
from datasets.writer import fingerprint

SIZE = (12, 16)
IMAGE = {"id": 9, "file_name": "000000000009.jpg", "height": 12, "width": 16}


def category_entries(names: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"id": key, "name": name, "isthing": int(name in THINGS)} for name, (key, _) in names.items()]


def write_images(root: Path, splits: tuple[str, ...] = ("train",)) -> Path:
    (root / "annotations").mkdir(parents=True)
    for split in splits:
        (root / f"{split}2017").mkdir()
        cv2.imwrite(str(root / f"{split}2017/000000000009.jpg"), np.zeros((*SIZE, 3), np.uint8))
    return root


def write_instances(root: Path, notes: list[dict[str, Any]], **changes: Any) -> Path:
    notes = [{"id": i, "image_id": 9, "iscrowd": 0, "bbox": [1.5, 2, 3, 4.25]} | note for i, note in enumerate(notes)]
    content = {"images": [IMAGE], "annotations": notes, "categories": category_entries(THINGS)} | changes
    (root / "annotations/instances_train2017.json").write_text(json.dumps(content))
    return root


def rectangle(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top:bottom, left:right] = True
    return mask


def polygon(top: int, left: int, bottom: int, right: int) -> list[list[float]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def outlines(sample: Sample) -> list[np.ndarray]:
    return [rle_api.decode({"size": list(SIZE), "counts": segment.rle}).astype(bool) for segment in sample.segments]


class TestCategories:
    def test_80_things_and_53_stuff_as_published(self) -> None:
        assert (len(THINGS), len(STUFF), len(CATEGORIES)) == (80, 53, 133)
        ids = [key for key, _ in CATEGORIES.values()]
        assert ids == sorted(ids)
        assert set(range(1, 91)) - set(ids) == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # dropped before the release
        assert len({colour for _, colour in CATEGORIES.values()}) == 133
        assert THINGS["person"] == (1, (220, 20, 60))
        assert THINGS["toothbrush"] == (90, (191, 162, 208))
        assert STUFF["banner"] == (92, (255, 255, 128))
        assert STUFF["rug-merged"] == (200, (250, 141, 255))
        assert sum(name.endswith("-merged") for name in STUFF) == 17
        assert not {name for name in THINGS if name.endswith("-merged")}

    def test_classes(self) -> None:
        assert len(CLASSES) == len(PALETTE) == 81
        assert (CLASSES[0], CLASSES[1], CLASSES[80]) == ("background", "person", "toothbrush")
        panoptic = coco_panoptic(Path())
        assert (panoptic.classes[0], panoptic.classes[79], panoptic.classes[80], panoptic.classes[132]) == (
            "person", "toothbrush", "banner", "rug-merged"
        )  # fmt: skip
        assert panoptic.palette[132] == (250, 141, 255)
        assert coco_instances(Path()).splits == panoptic.splits == {"train": 118287, "val": 5000}


class TestInstances:
    def test_mask_and_segments(self, tmp_path: Path) -> None:
        crowd = rectangle(0, 0, 12, 8)
        notes = [
            {"category_id": 90, "segmentation": polygon(4, 4, 8, 8), "bbox": [4, 4, 4, 4]},  # small, and listed first
            {"category_id": 1, "segmentation": polygon(2, 2, 10, 14)},
            {"category_id": 3, "iscrowd": 1, "segmentation": {"size": [12, 16], "counts": run_lengths(crowd)}},
            {"category_id": 2, "segmentation": [[0, 0, 5, 5]]},  # two corners enclose nothing
        ]
        benchmark = pickle.loads(pickle.dumps(coco_instances(write_instances(write_images(tmp_path), notes))))
        (item,) = benchmark.index("train")
        sample = benchmark.read(pickle.loads(pickle.dumps(item)))
        expected = np.zeros(SIZE, np.uint8)
        expected[crowd] = 255
        expected[rectangle(2, 2, 10, 14)] = 1
        expected[rectangle(4, 4, 8, 8)] = 80
        np.testing.assert_array_equal(sample.mask, expected)
        assert [(s.number, s.crowd, s.box) for s in sample.segments] == [
            (80, False, (4, 4, 4, 4)), (1, False, (1.5, 2, 3, 4.25)), (3, True, (1.5, 2, 3, 4.25)),
            (2, False, (1.5, 2, 3, 4.25)),
        ]  # fmt: skip
        shapes = [rectangle(4, 4, 8, 8), rectangle(2, 2, 10, 14), crowd, np.zeros(SIZE, bool)]
        for found, shape in zip(outlines(sample), shapes, strict=True):
            np.testing.assert_array_equal(found, shape)

    @pytest.mark.parametrize("counts", [[3, 5], "0", "5K"])
    def test_cut_run_lengths_are_named(self, tmp_path: Path, counts: object) -> None:
        notes = [{"category_id": 3, "iscrowd": 1, "segmentation": {"size": [12, 16], "counts": counts}}]
        benchmark = coco_instances(write_instances(write_images(tmp_path), notes))
        with pytest.raises(
            DataError, match=r"000000000009\.jpg, which has 12x16 pixels .*its run lengths (cover|are no)"
        ):
            benchmark.read(*benchmark.index("train"))

    def test_an_image_without_objects_is_kept(self, tmp_path: Path) -> None:
        benchmark = coco_instances(write_instances(write_images(tmp_path), []))
        sample = benchmark.read(benchmark.index("train")[0])
        assert sample.segments == ()
        assert not sample.mask.any()

    def test_the_mask_must_have_the_images_size(self, tmp_path: Path) -> None:
        write_instances(write_images(tmp_path), [], images=[IMAGE | {"height": 13}])
        benchmark = coco_instances(tmp_path)
        with pytest.raises(DataError, match="both must be of one size"):
            benchmark.read(benchmark.index("train")[0])

    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            ({"categories": category_entries(THINGS)[:-1]}, "1 categories are not COCO's, the first is 'toothbrush'"),
            ({"categories": [*category_entries(THINGS), {"id": 12, "name": "hat"}]}, r"'hat' \(id 12 in the file"),
            (
                {"annotations": [{"id": 1, "image_id": 8}]},
                "1 annotations belong to images that the file does not list: 1;",
            ),
            ({"images": None}, "not COCO's instances file"),
        ],
    )
    def test_other_files(self, tmp_path: Path, changes: dict[str, Any], match: str) -> None:
        write_instances(write_images(tmp_path), [], **changes)
        with pytest.raises(DataError, match=match):
            coco_instances(tmp_path).index("train")


class TestAnotherSplitsFile:
    @pytest.mark.parametrize("reader", [coco_voc, coco_instances])
    def test_cocos_own_address_shows_it(self, tmp_path: Path, reader: Any) -> None:
        url = "http://images.cocodataset.org/val2017/000000000009.jpg"
        write_instances(write_images(tmp_path), [], images=[IMAGE | {"coco_url": url}])
        with pytest.raises(
            DataError, match=r"instances_train2017\.json: lists images of val2017 \(000000000009\.jpg\)"
        ):
            reader(tmp_path).index("train")

    @pytest.mark.parametrize("reader", [coco_voc, coco_instances])
    def test_the_other_folder_shows_it(self, tmp_path: Path, reader: Any) -> None:
        write_instances(write_images(tmp_path, ("val",)), [])
        (tmp_path / "train2017").mkdir()
        with pytest.raises(DataError, match="the annotations of another split under this name"):
            reader(tmp_path).index("train")

    def test_images_of_no_split(self, tmp_path: Path) -> None:
        write_instances(write_images(tmp_path), [], images=[IMAGE | {"file_name": "COCO_train2014_000000000009.jpg"}])
        with pytest.raises(DataError, match=r"1 file is missing:\n.*COCO_train2014_000000000009\.jpg"):
            coco_instances(tmp_path).index("train")


IDS = {"person": 7 + 3 * 256 + 5 * 65536, "crowd": 300, "rug": 65536 * 200, "absent": 12}


class TestPanoptic:
    def write(self, root: Path, *, place: str = "annotations", drawn: dict[str, np.ndarray] | None = None,
              noted: tuple[str, ...] = ("person", "crowd", "rug"), **changes: Any) -> Path:  # fmt: skip
        """Write one image; its PNG shows the drawn segments, its JSON names the noted ones."""
        write_images(root)
        shapes = drawn or {
            "person": rectangle(0, 0, 6, 6), "crowd": rectangle(0, 6, 6, 16), "rug": rectangle(6, 0, 12, 12)
        }  # fmt: skip
        ids = np.zeros(SIZE, np.int64)
        for name, shape in shapes.items():
            ids[shape] = IDS[name]
        rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)
        folder = root / place / "panoptic_train2017"
        folder.mkdir(parents=True)
        Image.fromarray(rgb).save(folder / "000000000009.png")
        category = {"person": 1, "crowd": 3, "rug": 200, "absent": 2}
        entries = [{"id": IDS[name], "category_id": category[name], "iscrowd": int(name == "crowd"), "area": 1,
                    "bbox": [1, 2, 3, 4]} for name in noted]  # fmt: skip
        note = {"image_id": 9, "file_name": "000000000009.png", "segments_info": entries}
        content = {"images": [IMAGE], "annotations": [note], "categories": category_entries(CATEGORIES)} | changes
        (root / "annotations/panoptic_train2017.json").write_text(json.dumps(content))
        return root

    @pytest.mark.parametrize("place", ["annotations", "."])
    def test_mask_and_segments(self, tmp_path: Path, place: str) -> None:
        benchmark = pickle.loads(pickle.dumps(coco_panoptic(self.write(tmp_path, place=place))))
        (item,) = benchmark.index("train")
        sample = benchmark.read(pickle.loads(pickle.dumps(item)))
        expected = np.full(SIZE, 255, np.uint8)
        expected[rectangle(0, 0, 6, 6)] = 0
        expected[rectangle(0, 6, 6, 16)] = 2  # a crowd of cars
        expected[rectangle(6, 0, 12, 12)] = 132
        np.testing.assert_array_equal(sample.mask, expected)
        assert [(s.number, s.crowd, s.box) for s in sample.segments] == [
            (0, False, (1, 2, 3, 4)), (2, True, (1, 2, 3, 4)), (132, False, (1, 2, 3, 4))
        ]  # fmt: skip
        for found, number in zip(outlines(sample), (0, 2, 132), strict=True):
            np.testing.assert_array_equal(found, expected == number)

    def test_a_replaced_png_gives_other_shards(self, tmp_path: Path) -> None:
        benchmark = coco_panoptic(self.write(tmp_path))
        before = [fingerprint(benchmark.index("train"), benchmark, "train") for _ in range(2)]
        os.utime(tmp_path / "annotations/panoptic_train2017/000000000009.png", (1, 1))
        assert before[0] == before[1] != fingerprint(benchmark.index("train"), benchmark, "train")

    def test_all_void(self, tmp_path: Path) -> None:
        benchmark = coco_panoptic(self.write(tmp_path, drawn={"rug": np.zeros(SIZE, bool)}, noted=()))
        sample = benchmark.read(benchmark.index("train")[0])
        assert (sample.mask == 255).all()
        assert sample.segments == ()

    def test_an_id_that_the_json_lacks(self, tmp_path: Path) -> None:
        benchmark = coco_panoptic(self.write(tmp_path, noted=("person", "crowd")))
        with pytest.raises(DataError, match=rf"segment id {IDS['rug']} at row 6, column 0 is not in the annotation"):
            benchmark.read(benchmark.index("train")[0])

    @pytest.mark.parametrize("more", ["absent", "rug"])
    def test_an_id_that_the_png_lacks_or_twice(self, tmp_path: Path, more: str) -> None:
        benchmark = coco_panoptic(self.write(tmp_path, noted=("rug", "person", "crowd", more)))
        with pytest.raises(DataError, match=rf"segment id {IDS[more]} of the annotation file is not in the PNG"):
            benchmark.read(benchmark.index("train")[0])

    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            ({"categories": category_entries(THINGS)}, "53 categories are not COCO's"),
            (
                {"annotations": []},
                "images without annotation, or annotations without image: 9",
            ),
            ({"annotations": [{"image_id": 9, "segments_info": []}]}, "not COCO's panoptic file"),
        ],
    )
    def test_other_files(self, tmp_path: Path, changes: dict[str, Any], match: str) -> None:
        with pytest.raises(DataError, match=match):
            coco_panoptic(self.write(tmp_path, **changes)).index("train")

    def test_the_inner_archive_was_not_unpacked(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        (tmp_path / "annotations/panoptic_train2017").rename(tmp_path / "annotations/old")
        (tmp_path / "annotations/panoptic_train2017.zip").touch()
        with pytest.raises(
            DataError, match=r"panoptic_train2017\.zip is an archive; unpack it: unzip .* -d .*annotatio"
        ):
            coco_panoptic(tmp_path).index("train")

    def test_another_splits_file(self, tmp_path: Path) -> None:
        url = "http://images.cocodataset.org/val2017/000000000009.jpg"
        self.write(tmp_path, images=[IMAGE | {"coco_url": url}])
        with pytest.raises(DataError, match=r"panoptic_train2017\.json: lists images of val2017"):
            coco_panoptic(tmp_path).index("train")
