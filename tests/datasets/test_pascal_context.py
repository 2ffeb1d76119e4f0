"""PASCAL-Context, on miniatures of its two releases: run lengths in JSON, and .mat files of 459 labels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miniatures import SIZE, litter, through_shards, values, write_image
from pycocotools import mask as rle_api
from scipy.io import savemat

from datasets.catalog import BENCHMARKS
from datasets.readers.pascal_context import LABELS, pascal_context59, pascal_context60
from datasets.readers.tables import pixels_covered
from datasets.sample import DataError

# The labels in public code, 0 for the background.
MAPPING = sorted([
    0, 2, 259, 260, 415, 324, 9, 258, 144, 18, 19, 22, 23, 397, 25, 284, 158, 159, 416, 33, 162, 420, 454, 295, 296,
    427, 44, 45, 46, 308, 59, 440, 445, 31, 232, 65, 354, 424, 68, 326, 72, 458, 34, 207, 80, 355, 85, 347, 220, 349,
    360, 98, 187, 104, 105, 366, 189, 368, 113, 115,
])  # fmt: skip
STEMS = {"train": ["2008_000002", "2010_000197"], "val": ["2008_000003"]}
ALL = values(*range(460), dtype=np.uint16, size=(20, 30))


def by_public_code(labels: np.ndarray) -> np.ndarray:
    """The classes of a map whose labels are all among the 60, as public code computes them."""
    return np.digitize(labels.ravel(), MAPPING, right=True).reshape(labels.shape)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """VOC 2010's devkit without masks yet; one of its images, of test, has no labels."""
    root = tmp_path / "pascal context"
    voc = root / "VOCdevkit/VOC2010"
    for stem in [*STEMS["train"], *STEMS["val"], "2008_000001"]:
        write_image(voc / f"JPEGImages/{stem}.jpg")
    litter(voc / "JPEGImages", "2008_000002.jpg")
    (voc / "ImageSets/Main").mkdir(parents=True)
    for split, stems in STEMS.items():
        (voc / f"ImageSets/Main/{split}.txt").write_text("\n".join(stems) + "\n")
    return root


def rectangle(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def run_lengths(mask: np.ndarray, plain: bool = False) -> dict[str, Any]:
    """COCO's run lengths, compressed or as a list of counts, zeros first."""
    if not plain:
        rle = rle_api.encode(np.asfortranarray(mask))
        return {"size": list(mask.shape), "counts": rle["counts"].decode()}
    flat = np.concatenate([[0], mask.T.ravel(), [1 - mask.T.ravel()[-1]]])
    edges = np.flatnonzero(np.diff(flat))
    return {"size": list(mask.shape), "counts": np.diff(np.concatenate([[0], edges])).tolist()}


def write_merged(path: Path, notes: list[dict[str, Any]], **changes: Any) -> None:
    """Write the file of PASCAL in Detail: test images are among the others, in no order."""
    phases = {"2010_000197": "train", "2008_000001": "test", "2008_000003": "val", "2008_000002": "train"}
    images = [
        {"file_name": f"{stem}.jpg", "image_id": int(stem.replace("_", "")), "phase": phase, "height": SIZE[0],
         "width": SIZE[1], "date_captured": stem[:4]}
        for stem, phase in phases.items()
    ]  # fmt: skip
    notes = [{"id": i, "iscrowd": 0, "parts": [], "area": 1, "bbox": [0, 0, 1, 1]} | n for i, n in enumerate(notes)]
    categories = [{"category_id": n, "name": name, "onlysemantic": 0} for n, name in LABELS.items()]
    content = {"info": {}, "images": images, "annos_segmentation": notes, "categories": categories} | changes
    path.write_text(json.dumps(content))


NOTES = [
    {"image_id": 2008000002, "category_id": 360, "segmentation": run_lengths(rectangle(0, 0, 8, 16))},  # sky
    {"image_id": 2010000197, "category_id": 113, "segmentation": run_lengths(rectangle(0, 0, 12, 16))},  # dog
    {"image_id": 2008000002, "category_id": 284, "segmentation": run_lengths(rectangle(4, 4, 12, 8), plain=True)},
    {"image_id": 2008000002, "category_id": 1, "segmentation": run_lengths(rectangle(0, 12, 2, 16))},  # accordion
    {"image_id": 2008000003, "category_id": 458, "segmentation": run_lengths(rectangle(0, 0, 1, 1))},  # wood
    {"image_id": 2008000001, "category_id": 2, "segmentation": run_lengths(rectangle(0, 0, 1, 1))},
]


class TestClasses:
    def test_the_59_labels_of_public_code_in_their_order(self) -> None:
        assert [0, *LABELS] == MAPPING
        assert len(set(LABELS.values())) == 59
        assert list(LABELS.values()) == sorted(LABELS.values())
        assert [LABELS[n] for n in (2, 105, 284, 308, 427, 458)] == [
            "aeroplane", "curtain", "person", "pottedplant", "tvmonitor", "wood"
        ]  # fmt: skip

    def test_background_is_first_or_ignored(self, root: Path) -> None:
        small, large = pascal_context59(root), pascal_context60(root)
        assert large.classes == ("background", *small.classes)
        assert large.palette == ((0, 0, 0), *small.palette)
        assert len(set(large.palette)) == len(large.classes) == 60


class TestJson:
    def test_later_regions_over_earlier_ones(self, root: Path, tmp_path: Path) -> None:
        write_merged(root / "VOCdevkit/VOC2010/trainval_merged.json", NOTES)
        labels = np.zeros(SIZE, np.uint16)
        labels[0:8] = 360
        labels[4:12, 4:8] = 284
        labels[0:2, 12:16] = 0  # no class of the 59, and over the sky
        expected = by_public_code(labels)
        shards = through_shards(BENCHMARKS["pascal_context60"](root), "train", tmp_path / "60")
        assert shards.ids == STEMS["train"]
        np.testing.assert_array_equal(shards.sample(0)[1], expected)
        shards = through_shards(BENCHMARKS["pascal_context59"](root), "train", tmp_path / "59")
        np.testing.assert_array_equal(shards.sample(0)[1], (expected - 1).astype(np.uint8))  # 0 - 1 is 255
        assert (shards.sample(1)[1] == pascal_context59(root).classes.index("dog")).all()
        assert shards.manifest.official_rows == 4996

    @pytest.mark.parametrize("place", ["", "VOCdevkit", "VOCdevkit/VOC2010"])
    @pytest.mark.parametrize("source", ["", "VOCdevkit", "VOCdevkit/VOC2010"])
    def test_places(self, root: Path, place: str, source: str) -> None:
        write_merged(root / place / "trainval_merged.json", NOTES)
        benchmark = pascal_context60(root / source)
        assert benchmark.splits == {"train": 4996, "val": 5104}
        assert [[item.id for item in benchmark.index(split)] for split in benchmark.splits] == list(STEMS.values())

    def test_an_image_without_regions_is_background(self, root: Path) -> None:
        write_merged(root / "trainval_merged.json", [])
        for benchmark, value in ((pascal_context59(root), 255), (pascal_context60(root), 0)):
            assert (benchmark.read(benchmark.index("val")[0]).mask == value).all()

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"category_id": 460}, r"2008_000003\.jpg, its regions .*label value 460 .*allowed are 0-459\."),
            ({"category_id": 65538}, "region of label 65538 does not decode"),  # 2 in 16 bits
            ({"segmentation": {"size": list(SIZE), "counts": "0"}}, "region of label 458 does not decode"),
            ({"segmentation": {"size": list(SIZE), "counts": "PPPP1"}}, "region of label 458 does not decode"),
            ({"segmentation": {"size": list(SIZE), "counts": "é"}}, "region of label 458 does not decode"),
        ],
    )
    def test_wrong_regions(self, root: Path, change: dict[str, Any], match: str) -> None:
        write_merged(root / "trainval_merged.json", [NOTES[4] | change])
        item = pascal_context59(root).index("val")[0]
        with pytest.raises(DataError, match=match):
            pascal_context59(root).read(item)

    def test_whole_run_lengths_cover_the_image(self) -> None:
        rng = np.random.default_rng(0)
        for share in (0.0, 0.01, 0.5, 0.99, 1.0):
            for size in ((1, 1), (7, 5), (375, 500)):
                counts = run_lengths((rng.random(size) < share).astype(np.uint8))["counts"].encode()
                assert pixels_covered(counts) == size[0] * size[1]
                assert pixels_covered(counts[:-1]) != size[0] * size[1]

    def test_mask_and_image_of_other_sizes(self, root: Path) -> None:
        region = run_lengths(np.ones((16, 12), np.uint8))
        write_merged(root / "trainval_merged.json", [NOTES[4] | {"segmentation": region}])
        with pytest.raises(DataError, match=r"2008_000003\.jpg is 16x12 pixels .*\[16, 12\]"):
            pascal_context59(root).index("val")
        write_merged(root / "trainval_merged.json", NOTES)
        write_image(root / "VOCdevkit/VOC2010/JPEGImages/2008_000003.jpg", (6, 8))
        with pytest.raises(DataError, match=r"image is 8x6 pixels .* its entry in trainval_merged\.json 16x12"):
            pascal_context59(root).read(pascal_context59(root).index("val")[0])

    def test_other_files(self, root: Path) -> None:
        path = root / "trainval_merged.json"
        for content in (b"\xff\xfe\x00", b"{", b"[]", b'{"images": [{"id": 1}]}'):
            path.write_bytes(content)
            with pytest.raises(DataError, match="not the file of PASCAL in Detail"):
                pascal_context59(root).index("val")
        write_merged(path, [NOTES[4] | {"category_id": 2.5}])
        with pytest.raises(DataError, match=r"not the file of PASCAL in Detail \(TypeError"):
            pascal_context59(root).index("val")
        write_merged(path, NOTES)
        (root / "VOCdevkit/VOC2010/JPEGImages/2008_000002.jpg").unlink()
        with pytest.raises(DataError, match=r"1 file is missing:\n.*2008_000002\.jpg"):
            pascal_context59(root).index("train")


class TestMat:
    @pytest.fixture
    def mats(self, root: Path) -> Path:
        (root / "trainval").mkdir()
        for stem in [*STEMS["train"], *STEMS["val"]]:
            savemat(root / f"trainval/{stem}.mat", {"LabelMap": ALL}, do_compression=True)
            write_image(root / f"VOCdevkit/VOC2010/JPEGImages/{stem}.jpg", ALL.shape)
        litter(root / "trainval", "2008_000002.mat")
        return root

    def test_all_labels_bit_for_bit(self, mats: Path, tmp_path: Path) -> None:
        expected = by_public_code(np.where(np.isin(ALL, MAPPING), ALL, 0))
        shards = through_shards(BENCHMARKS["pascal_context60"](mats), "val", tmp_path / "60")
        np.testing.assert_array_equal(shards.sample(0)[1], expected)
        shards = through_shards(BENCHMARKS["pascal_context59"](mats), "val", tmp_path / "59")
        np.testing.assert_array_equal(shards.sample(0)[1], (expected - 1).astype(np.uint8))
        assert shards.manifest.official_rows == 5105

    def test_rows_of_voc_or_of_own_lists(self, mats: Path) -> None:
        benchmark = pascal_context59(mats)
        assert benchmark.splits == {"train": 4998, "val": 5105}
        assert [[item.id for item in benchmark.index(split)] for split in benchmark.splits] == list(STEMS.values())
        (mats / "train.txt").write_text("2010_000197.jpg\n")
        assert [item.id for item in benchmark.index("train")] == ["2010_000197"]

    def test_json_comes_first(self, mats: Path) -> None:
        write_merged(mats / "trainval_merged.json", NOTES)
        assert [type(item.label) for item in pascal_context59(mats).index("val")] == [tuple]

    @pytest.mark.parametrize(
        ("labels", "match"),
        [
            (np.full_like(ALL, 460), "label value 460 .*allowed are 0-459"),
            (np.full(ALL.shape, 65536 + 2, np.int32), "label value 65538 "),
            (ALL[:6], "its mask 30x6"),
        ],
    )
    def test_wrong_maps(self, mats: Path, labels: np.ndarray, match: str) -> None:
        savemat(mats / "trainval/2008_000003.mat", {"LabelMap": labels})
        item = pascal_context59(mats).index("val")[0]
        with pytest.raises(DataError, match=match):
            pascal_context59(mats).read(item)

    def test_another_variable(self, mats: Path) -> None:
        savemat(mats / "trainval/2008_000003.mat", {"GTcls": ALL})
        with pytest.raises(DataError, match="no variable LabelMap"):
            pascal_context60(mats).read(pascal_context60(mats).index("val")[0])

    def test_missing_files(self, mats: Path) -> None:
        (mats / "trainval/2008_000003.mat").unlink()
        with pytest.raises(DataError, match=r"1 file is missing:\n.*2008_000003\.mat"):
            pascal_context59(mats).index("val")
        (mats / "VOCdevkit/VOC2010/ImageSets/Main/val.txt").unlink()
        with pytest.raises(DataError, match=r"1 file is missing:\n.*Main/val\.txt"):
            pascal_context59(mats).index("val")


def test_neither_release(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither trainval_merged\.json nor a folder trainval"):
        pascal_context59(root).index("val")
    with pytest.raises(DataError, match="no VOC2010/JPEGImages"):
        pascal_context59(tmp_path / "nowhere").index("val")
    with pytest.raises(DataError, match="pascal_context60 has no split 'trainval'; allowed are train, val"):
        pascal_context60(root).index("trainval")
