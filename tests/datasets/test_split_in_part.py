"""A split of a published release: left out where nothing of it is there, an error where a part of it is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from miniatures import values, write_image, write_mask
from pycocotools import mask as rle_api

from datasets.catalog import BENCHMARKS
from datasets.readers.coco import coco_voc
from datasets.readers.coco_categories import THINGS
from datasets.readers.coco_instances import coco_instances
from datasets.readers.mapillary import NAMES
from datasets.sample import ABSENT, DAMAGED, DataError, Rows
from datasets.shapes import run_lengths

SIZE = (12, 16)


def write_coco(root: Path, split: str, notes: list[dict] | None = None, **changes: object) -> None:
    """Write one image with notes of one person in each."""
    whole = {"size": list(SIZE), "counts": run_lengths(np.ones(SIZE, bool))}
    for i in range(2):
        write_image(root / f"{split}2017/{i:012d}.jpg", SIZE)
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in range(2)]
    given = notes or [{"segmentation": whole}]
    entries = [{"id": i, "image_id": 0, "category_id": 1, "iscrowd": 0, "bbox": [0, 0, 1, 1]} | note
               for i, note in enumerate(given)]  # fmt: skip
    names = [{"id": key, "name": name} for name, (key, _) in THINGS.items()]
    content = {"images": images, "annotations": entries, "categories": names} | changes
    (root / "annotations").mkdir(exist_ok=True)
    (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))


def write_ade(root: Path, split: str) -> None:
    name = {"train": "training", "val": "validation"}[split]
    write_image(root / f"images/{name}/a.jpg", SIZE)
    write_mask(root / f"annotations/{name}/a.png", values(1, 2, size=SIZE))


def write_camvid(root: Path, split: str) -> None:
    write_image(root / f"{split}/a.png", SIZE)
    write_mask(root / f"{split}annot/a.png", values(1, 2, size=SIZE))


def write_cityscapes(root: Path, split: str) -> None:
    write_image(root / f"leftImg8bit/{split}/ulm/a_leftImg8bit.png", SIZE)
    write_mask(root / f"gtFine/{split}/ulm/a_gtFine_labelIds.png", values(7, 8, size=SIZE))


def write_stuff(root: Path, split: str) -> None:
    write_image(root / f"{split}2017/a.jpg", SIZE)
    write_mask(root / f"stuffthingmaps_trainval2017/{split}2017/a.png", values(1, 2, size=SIZE))


def write_lip(root: Path, split: str) -> None:
    write_image(root / f"TrainVal_images/{split}_images/a.jpg", SIZE)
    write_mask(root / f"TrainVal_parsing_annotations/{split}_segmentations/a.png", values(1, 2, size=SIZE))
    (root / f"TrainVal_images/{split}_id.txt").write_text("a\n")


def write_mapillary(root: Path, split: str) -> None:
    folder = root / {"train": "training", "val": "validation"}[split]
    write_image(folder / "images/a.jpg", SIZE)
    write_mask(folder / "labels/a.png", values(1, 2, size=SIZE))
    labels = [{"readable": name, "evaluate": name != "Unlabeled"} for name in (*NAMES, "Unlabeled")]
    (root / "config.json").write_text(json.dumps({"labels": labels}))


WRITE: dict[str, Callable[[Path, str], None]] = {
    "ade20k": write_ade, "camvid": write_camvid, "cityscapes": write_cityscapes, "cocostuff164k": write_stuff,
    "lip": write_lip, "mapillary": write_mapillary, "coco_voc": write_coco, "coco_instances": write_coco,
}  # fmt: skip
PARTS = {
    "ade20k": ["images/training", "annotations/training"],
    "camvid": ["train", "trainannot"],
    "cityscapes": ["leftImg8bit/train", "gtFine/train"],
    "cocostuff164k": ["train2017", "stuffthingmaps_trainval2017/train2017"],
    "lip": ["TrainVal_images/train_images", "TrainVal_parsing_annotations/train_segmentations",
            "TrainVal_images/train_id.txt"],
    "mapillary": ["training/images", "training/labels"],
    "coco_voc": ["train2017", "annotations/instances_train2017.json"],
    "coco_instances": ["train2017", "annotations/instances_train2017.json"],
}  # fmt: skip


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("name", WRITE)
def test_nothing_of_a_split_is_absent_and_any_part_of_it_is_a_fault(tmp_path: Path, name: str) -> None:
    WRITE[name](tmp_path / "other", "val")
    with pytest.raises(DataError) as caught:
        BENCHMARKS[name](tmp_path / "other").index("train")
    assert caught.value.kind == ABSENT
    for number, part in enumerate(PARTS[name]):
        root = tmp_path / str(number)
        for split in ("train", "val"):
            WRITE[name](root, split)
        assert BENCHMARKS[name](root).index("train") is not None
        remove(root / part)
        with pytest.raises(DataError) as caught:
            BENCHMARKS[name](root).index("train")
        assert caught.value.kind != ABSENT, part
        (root / part).symlink_to("/gone")  # a link that leads nowhere is a part too, and is told
        with pytest.raises(DataError, match=r"a link to /gone, which is not there|no folder") as caught:
            BENCHMARKS[name](root).index("train")
        assert caught.value.kind != ABSENT, part


@pytest.mark.parametrize("split", ["train", "val", "trainval"])
def test_vocs_lists_come_together_but_for_that_of_test(sample_root: Path, tmp_path: Path, split: str) -> None:
    shutil.copytree(sample_root, tmp_path / "voc", symlinks=True)
    voc = BENCHMARKS["voc12"](tmp_path / "voc")
    with pytest.raises(DataError, match=r"test\.txt") as caught:
        voc.index("test")
    assert caught.value.kind == ABSENT
    lists = tmp_path / "voc/VOCdevkit/VOC2012/ImageSets/Segmentation"
    (lists / f"{split}.txt").unlink()
    with pytest.raises(DataError, match=rf"{split}\.txt") as caught:
        voc.index(split)
    assert caught.value.kind != ABSENT


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lists_of_any_encoding_and_line_end(tmp_path: Path, encoding: str, end: str) -> None:
    write_lip(tmp_path, "train")
    for folder, suffix in (("TrainVal_images/train_images", "jpg"),
                           ("TrainVal_parsing_annotations/train_segmentations", "png")):  # fmt: skip
        shutil.copy(tmp_path / folder / f"a.{suffix}", tmp_path / folder / f"ü.{suffix}")
    (tmp_path / "TrainVal_images/train_id.txt").write_bytes(f"a{end}ü{end}".encode(encoding))
    assert [item.id for item in BENCHMARKS["lip"](tmp_path).index("train")] == ["a", "ü"]


def test_a_link_that_leads_nowhere_is_a_missing_file(tmp_path: Path) -> None:
    for kind, end in (("train", "png"), ("trainannot", "png")):
        root = tmp_path / kind
        write_camvid(root, "train")
        (root / f"{kind}/a.{end}").unlink()
        (root / f"{kind}/a.{end}").symlink_to("../gone.png")
        with pytest.raises(DataError, match=rf"1 file is missing:\n  .*{kind}/a\.png \(a link to \.\./gone"):
            BENCHMARKS["camvid"](root).index("train")


class TestCoco:
    @pytest.mark.parametrize("reader", [coco_voc, coco_instances])
    @pytest.mark.parametrize("share", [0.2, 0.9, 0.999])
    def test_a_file_that_is_cut(self, tmp_path: Path, reader: Callable, share: float) -> None:
        write_coco(tmp_path, "train")
        path = tmp_path / "annotations/instances_train2017.json"
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        with pytest.raises(DataError, match=r"instances_train2017\.json: not COCO's instances file") as caught:
            reader(tmp_path).index("train")
        assert caught.value.kind == DAMAGED

    def test_the_rows_know_how_many_images_are_listed(self, tmp_path: Path) -> None:
        write_coco(tmp_path, "train")
        rows = coco_voc(tmp_path, min_pixels=1).index("train")
        assert isinstance(rows, Rows)
        assert (len(rows), rows.listed, coco_voc(tmp_path).listed["train"]) == (1, 2, 118287)

    @pytest.mark.parametrize("reader", [coco_voc, coco_instances])
    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            (
                {"annotations": [{"id": 5, "image_id": 7}]},
                "1 annotations belong to images that the file does not list: 5",
            ),
            ({"images": [{"id": 0}, {"id": 0}]}, "1 images have the id of another"),
        ],
    )
    def test_lists_that_disagree(self, tmp_path: Path, reader: Callable, changes: dict, match: str) -> None:
        write_coco(tmp_path, "train", **changes)
        with pytest.raises(DataError, match=rf"instances_train2017\.json: {match}"):
            reader(tmp_path).index("train")

    @pytest.mark.parametrize("reader", [coco_voc, coco_instances])
    def test_all_images_with_a_part_of_their_objects(self, tmp_path: Path, monkeypatch, reader: Callable) -> None:
        write_coco(tmp_path, "train")
        monkeypatch.setattr("datasets.readers.coco_files.IMAGES", {"train": 2, "val": 2})
        with pytest.raises(DataError, match=r"1 objects of 2 images; COCO's train2017 has 860,001. The file is cut"):
            reader(tmp_path).index("train")

    @pytest.mark.parametrize("reader", [coco_voc, coco_instances])
    @pytest.mark.parametrize(
        ("segmentation", "match"),
        [
            ({"size": [16, 12], "counts": [192]}, r"run lengths have the size \[16, 12\]"),
            ({"size": [12, 16], "counts": [100]}, "run lengths cover 100 pixels"),
            ({"size": [12, 16], "counts": [200, -8]}, "are no run lengths"),
            ({"size": [12, 16], "counts": "o"}, "are no run lengths"),
            ({"size": [12, 16], "counts": "~~"}, "are no run lengths"),
            ([[0, 0, 17.5, 0, 9, 9]], "a polygon reaches from 0 to 17.5 where 0 to 16 is the image"),
            ([[0, -4, 9, 0, 9, 9]], "a polygon reaches from -4 to 9 where 0 to 12 is the image"),
            ([[0, 0, 9, 0, 9, 9, 4]], "a polygon is no list of pairs"),
            ([[0, 0, float("nan"), 0, 9, 9]], "a polygon reaches"),
        ],
    )
    def test_outlines_that_disagree_with_their_image(
        self, tmp_path: Path, reader: Callable, segmentation: object, match: str
    ) -> None:
        write_coco(tmp_path, "train", [{"segmentation": segmentation}])
        with pytest.raises(DataError, match=rf"annotation 0 of 000000000000\.jpg, which has 12x16 .*{match}.*fetch"):
            reader(tmp_path).index("train")

    @pytest.mark.parametrize("reader", [coco_voc, coco_instances])
    def test_outlines_at_the_edge_are_fine(self, tmp_path: Path, reader: Callable) -> None:
        whole = rle_api.encode(np.asfortranarray(np.ones(SIZE, np.uint8)))
        notes = [{"segmentation": [[0, 0, 16, 0, 16.5, 12, -0.5, 12]]},
                 {"segmentation": {"size": list(SIZE), "counts": whole["counts"].decode()}}]  # fmt: skip
        write_coco(tmp_path, "train", notes)
        assert reader(tmp_path).index("train") is not None

    @pytest.mark.parametrize("reader", [lambda source: coco_voc(source, min_pixels=1), coco_instances])
    def test_an_image_of_another_size_than_noted(self, tmp_path: Path, reader: Callable) -> None:
        write_coco(tmp_path, "train")
        write_image(tmp_path / "train2017/000000000000.jpg", (16, 12))
        benchmark = reader(tmp_path)
        with pytest.raises(DataError, match=r"image is 12x16 pixels .* its entry in the annotation file 16x12"):
            benchmark.read(benchmark.index("train")[0])
