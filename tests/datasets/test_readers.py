"""The benchmarks' readers, on miniatures in the original layouts."""

import io
import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from datasets.catalog import BENCHMARKS
from datasets.readers.coco import coco_voc
from datasets.readers.labels import check_present, colour_map
from datasets.readers.voc import CLASSES, PALETTE, voc12, voc12_aug
from datasets.sample import DataError, Item, decode_image, decode_mask, encode_mask
from datasets.shapes import CATEGORIES, run_lengths


def encoded(kind: str, mode: str = "RGB", **options: object) -> bytes:
    pixels = cv2.resize(np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8), (300, 200))
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


class TestImages:
    @pytest.mark.parametrize("kind", ["JPEG", "PNG"])
    @pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
    def test_truncated_is_an_error(self, kind: str, share: float) -> None:
        data = encoded(kind)
        with pytest.raises(DataError, match="truncated"):
            decode_image(data[: int(len(data) * share)])

    def test_bytes_after_the_end_marker_are_allowed(self) -> None:
        data = encoded("JPEG")
        np.testing.assert_array_equal(decode_image(data + b"\0" * 7 + b"camera"), decode_image(data))

    def test_other_formats_are_named(self) -> None:
        with pytest.raises(DataError, match="neither JPEG nor PNG"):
            decode_image(b"GIF89a" + b"\0" * 50)

    @pytest.mark.parametrize(("kind", "mode"), [("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "P"), ("PNG", "RGBA")])
    def test_modes_become_rgb(self, kind: str, mode: str) -> None:
        data = encoded(kind, mode)
        reference = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
        assert np.abs(decode_image(data) - reference).mean() < 1.5

    def test_exif_rotation_is_ignored(self) -> None:
        turned = Image.Exif()
        turned[0x0112] = 6
        assert decode_image(encoded("JPEG", exif=turned)).shape == (200, 300, 3)

    @pytest.mark.parametrize("size", [(1, 1), (16, 48), (1, 1000), (513, 257), (0, 4)])
    @pytest.mark.parametrize("kind", ["constant", "random", "runs"])
    def test_mask_codec_keeps_every_bit(self, size: tuple[int, int], kind: str) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
        mask = {"constant": pixels * 0 + 7, "random": pixels, "runs": pixels // 64}[kind]
        back = decode_mask(encode_mask(mask[:, ::-1]))  # not contiguous
        np.testing.assert_array_equal(back, mask[:, ::-1])
        assert (back.dtype, back.shape) == (np.uint8, size)

    def test_a_damaged_mask_is_an_error(self) -> None:
        data = encode_mask(np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 48))
        for place in range(len(data)):
            with pytest.raises(DataError, match="damaged mask"):
                decode_mask(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        for cut in (data[:-1], data[:12], data[:5], b""):
            with pytest.raises(DataError, match="damaged mask"):
                decode_mask(cut)


class TestVoc:
    def test_published_colours(self) -> None:
        assert PALETTE[:3] == ((0, 0, 0), (128, 0, 0), (0, 128, 0))
        assert (PALETTE[15], PALETTE[20]) == ((192, 128, 128), (0, 64, 128))
        assert colour_map(256)[255] == (224, 224, 192)

    @pytest.mark.parametrize("inside", [".", "VOCdevkit", "VOCdevkit/VOC2012"])
    def test_splits_from_each_root(self, sample_root: Path, inside: str) -> None:
        voc = voc12(sample_root / inside)
        assert [len(voc.index(split)) for split in ("train", "val", "trainval")] == [8, 6, 14]
        assert voc.splits == {"train": 1464, "val": 1449, "trainval": 2913, "test": 1456}
        assert len(voc12_aug(sample_root / inside).index("train")) == 14

    def test_mask_is_the_palette_index(self, sample_root: Path) -> None:
        item = voc12(sample_root).index("train")[0]
        image = Image.open(str(item.label))
        assert image.mode == "P"
        mask = voc12(sample_root).read(item).mask
        np.testing.assert_array_equal(mask, np.asarray(image))
        assert 255 in mask
        assert set(np.unique(mask)) <= {*range(21), 255}

    def test_unknown_split(self, sample_root: Path) -> None:
        with pytest.raises(DataError, match=r"no split 'aug'; allowed are train, val, trainval, test"):
            voc12(sample_root).index("aug")

    def test_wrong_folder_draws_the_tree(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").touch()
        with pytest.raises(DataError, match="1449 ids"):
            voc12(tmp_path).index("val")

    def test_test_split_has_no_labels(self, tmp_path: Path) -> None:
        root = tmp_path / "VOCdevkit/VOC2012"
        for name in ("ImageSets/Segmentation", "JPEGImages"):
            (root / name).mkdir(parents=True)
        (root / "ImageSets/Segmentation/test.txt").write_text("2008_000006\n2008_000011\n")
        for stem in ("2008_000006", "2008_000011"):
            cv2.imwrite(str(root / f"JPEGImages/{stem}.jpg"), np.zeros((6, 8, 3), np.uint8))
        items = voc12(tmp_path).index("test")
        assert [item.id for item in items] == ["2008_000006", "2008_000011"]
        assert voc12(tmp_path).read(items[0]).mask is None
        (root / "JPEGImages/2008_000011.jpg").unlink()
        with pytest.raises(DataError, match=r"1 file is missing:\n.*2008_000011\.jpg"):
            voc12(tmp_path).index("test")

    @pytest.mark.parametrize("inside", [".", "VOCdevkit", "VOCdevkit/VOC2007"])
    def test_another_year_is_named(self, tmp_path: Path, inside: str) -> None:
        (tmp_path / "VOCdevkit/VOC2007/ImageSets/Segmentation").mkdir(parents=True)
        with pytest.raises(DataError, match=r"VOC 2007\b"):
            voc12(tmp_path / inside).index("train")

    @pytest.mark.parametrize(("year", "expected"), [("2010", "release of VOC 2010"), ("2012", "1 file is missing")])
    def test_a_renamed_year_is_found_in_the_annotations(self, tmp_path: Path, year: str, expected: str) -> None:
        for name in ("ImageSets/Segmentation", "Annotations"):
            (tmp_path / "voc" / name).mkdir(parents=True)
        (tmp_path / "voc/Annotations/._a.xml").write_bytes(b"\0\5\x16\7")
        (tmp_path / "voc/Annotations/a.xml").write_text(f"<annotation><folder>VOC{year}</folder></annotation>")
        with pytest.raises(DataError, match=expected):
            voc12(tmp_path / "voc").index("train")

    def test_missing_files_are_counted_and_ten_named(self, tmp_path: Path) -> None:
        with pytest.raises(DataError) as caught:
            check_present([tmp_path / f"{i:02d}.jpg" for i in range(13)], "THE TREE")
        message = str(caught.value)
        assert "13 files are missing" in message
        assert "09.jpg" in message
        assert "10.jpg" not in message
        assert message.endswith("THE TREE")


class TestAug:
    """The formula of the 10,582 rows, on a miniature of SBD's release."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        lists = {"train": ["a", "b"], "val": ["c", "d"]}
        sbd_lists = {"train": ["b", "c", "e"], "val": ["d", "f"]}
        voc, sbd = tmp_path / "VOCdevkit/VOC2012", tmp_path / "benchmark_RELEASE/dataset"
        for folder_ in (voc / "JPEGImages", voc / "SegmentationClass", voc / "ImageSets/Segmentation", sbd / "cls"):
            folder_.mkdir(parents=True)
        (sbd / "img").mkdir()
        for split in ("train", "val"):
            (voc / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(lists[split]) + "\n")
            (sbd / f"{split}.txt").write_text("\n".join(sbd_lists[split]))
        image = np.zeros((6, 8, 3), np.uint8)
        for stem in "abcdef":
            cv2.imwrite(str(voc / f"JPEGImages/{stem}.jpg"), image)
            cv2.imwrite(str(sbd / f"img/{stem}.jpg"), image)
            Image.fromarray(np.full((6, 8), 7, np.uint8)).save(voc / f"SegmentationClass/{stem}.png")
            content = {"Segmentation": np.full((6, 8), 9, np.uint8), "Boundaries": np.zeros((20, 1))}
            savemat(sbd / f"cls/{stem}.mat", {"GTcls": content})
        return tmp_path

    def test_formula(self, root: Path) -> None:
        aug = voc12_aug(root)
        items = aug.index("train")
        assert [item.id for item in items] == ["a", "b", "e", "f"]  # (ab + bce + df) - cd
        assert [int(aug.read(item).mask[0, 0]) for item in items] == [7, 7, 9, 9]

    def test_sbd_gives_the_mask_where_voc_has_none(self, root: Path) -> None:
        (root / "VOCdevkit/VOC2012/SegmentationClass/b.png").unlink()
        items = voc12_aug(root).index("train")
        assert [str(item.label)[-3:] for item in items] == ["png", "mat", "mat", "mat"]

    def test_sbd_next_to_the_source(self, root: Path) -> None:
        assert len(voc12_aug(root / "VOCdevkit").index("train")) == 4

    def test_missing_sbd_file(self, root: Path) -> None:
        (root / "benchmark_RELEASE/dataset/cls/e.mat").unlink()
        with pytest.raises(DataError, match=r"1 file is missing:\n.*e\.mat"):
            voc12_aug(root).index("train")

    def test_damaged_mat(self, root: Path) -> None:
        aug = voc12_aug(root)
        item = aug.index("train")[-1]
        Path(str(item.label)).write_bytes(b"no matrix")
        with pytest.raises(DataError, match=r"f\.mat"):
            aug.read(item)

    def test_neither_form(self, root: Path) -> None:
        (root / "benchmark_RELEASE").rename(root / "elsewhere")
        with pytest.raises(DataError, match="neither SegmentationClassAug"):
            voc12_aug(root).index("train")


def write_coco(root: Path, notes: list[dict], size: tuple[int, int] = (60, 80)) -> Path:
    """Write one COCO image with the given annotations."""
    (root / "annotations").mkdir(parents=True)
    (root / "train2017").mkdir()
    cv2.imwrite(str(root / "train2017/000000000007.jpg"), np.zeros((*size, 3), np.uint8))
    image = {"id": 7, "file_name": "000000000007.jpg", "height": size[0], "width": size[1]}
    notes = [{"id": i, "image_id": 7, "iscrowd": 0} | note for i, note in enumerate(notes)]
    names = [{"id": number, "name": name} for name, number in CATEGORIES.items()]
    content = {"images": [image], "annotations": notes, "categories": names}
    (root / "annotations/instances_train2017.json").write_text(json.dumps(content))
    return root


def rectangle(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((60, 80), bool)
    mask[top:bottom, left:right] = True
    return mask


def polygon(top: int, left: int, bottom: int, right: int) -> list[list[float]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


class TestCoco:
    PERSON, DOG, CUP = CATEGORIES["person"], CATEGORIES["dog"], CATEGORIES["cup"]

    def test_small_over_large_and_crowds_below_all(self, tmp_path: Path) -> None:
        crowd = rectangle(0, 0, 60, 40)
        notes = [
            {"category_id": self.DOG, "segmentation": polygon(15, 15, 25, 25)},  # small, and listed first
            {"category_id": self.PERSON, "segmentation": polygon(10, 10, 50, 70)},
            {"category_id": self.CUP, "segmentation": polygon(0, 0, 60, 80)},  # not one of VOC's
            {
                "category_id": self.DOG,
                "iscrowd": 1,
                "segmentation": {"size": [60, 80], "counts": run_lengths(crowd)},
            },
            {"category_id": self.DOG, "segmentation": [[0, 0, 5, 5]]},  # two corners enclose nothing
        ]
        benchmark = coco_voc(write_coco(tmp_path, notes))
        expected = np.zeros((60, 80), np.uint8)
        expected[crowd] = 255
        expected[rectangle(10, 10, 50, 70)] = CLASSES.index("person")
        expected[rectangle(15, 15, 25, 25)] = CLASSES.index("dog")
        (item,) = benchmark.index("train")
        np.testing.assert_array_equal(benchmark.read(item).mask, expected)

    @pytest.mark.parametrize(("rows", "kept"), [(25, 1), (24, 0)])
    def test_a_thousand_labelled_pixels(self, tmp_path: Path, rows: int, kept: int) -> None:
        """40 columns: 25 rows are 1,000 pixels. Overlaps count once; crowds and other categories do not count."""
        notes = [
            {"category_id": self.PERSON, "segmentation": polygon(0, 0, rows, 40)},
            {"category_id": self.DOG, "segmentation": polygon(0, 0, 10, 10)},
            {"category_id": self.CUP, "segmentation": polygon(30, 0, 60, 80)},
            {
                "category_id": self.DOG,
                "iscrowd": 1,
                "segmentation": {"size": [60, 80], "counts": run_lengths(rectangle(30, 0, 60, 80))},
            },
        ]
        benchmark = coco_voc(write_coco(tmp_path, notes))
        assert len(benchmark.index("train")) == kept
        assert len(coco_voc(tmp_path, min_pixels=960).index("train")) == 1

    def test_all_forms_of_run_lengths_agree(self, sample_root: Path) -> None:
        content = json.loads((sample_root / "coco/annotations/instances_train2017.json").read_text())
        forms = {type(n["segmentation"]["counts"]) for n in content["annotations"] if "size" in n["segmentation"]}
        assert forms == {str, list}
        assert {n["iscrowd"] for n in content["annotations"]} == {0, 1}
        benchmark = coco_voc(sample_root / "coco", min_pixels=1)
        masks = [benchmark.read(item).mask for item in benchmark.index("train")]
        assert len(masks) == 24
        assert any(255 in mask for mask in masks)

    def test_missing_image(self, tmp_path: Path) -> None:
        (write_coco(tmp_path, []) / "train2017/000000000007.jpg").unlink()
        with pytest.raises(DataError, match="118287 images"):
            coco_voc(tmp_path).index("train")

    def test_other_json(self, tmp_path: Path) -> None:
        (write_coco(tmp_path, []) / "annotations/instances_train2017.json").write_text('{"images": []}')
        with pytest.raises(DataError, match="not COCO's instances file"):
            coco_voc(tmp_path).index("train")


class TestCamvid:
    def test_void_and_absent_test_split(self, tmp_path: Path) -> None:
        for name, pixels in (("val", np.zeros((4, 5, 3))), ("valannot", np.arange(20).reshape(4, 5) % 12)):
            (tmp_path / name).mkdir()
            cv2.imwrite(str(tmp_path / name / "0001TP.png"), pixels.astype(np.uint8))
        camvid = BENCHMARKS["camvid"](tmp_path)
        (item,) = camvid.index("val")
        expected = (np.arange(20).reshape(4, 5) % 12).astype(np.uint8)
        expected[expected == 11] = 255
        np.testing.assert_array_equal(camvid.read(item).mask, expected)
        with pytest.raises(DataError, match=r"testannot"):
            camvid.index("test")

    @pytest.mark.data
    @pytest.mark.parametrize(("split", "rows"), [("train", 367), ("val", 101)])
    def test_real(self, camvid_root: Path, split: str, rows: int) -> None:
        camvid = BENCHMARKS["camvid"](camvid_root)
        items = camvid.index(split)
        assert len(items) == rows == camvid.splits[split]
        found = {int(v) for item in items[::10] for v in np.unique(camvid.read(item).mask)}
        assert found == {*range(11), 255}


def test_benchmarks_pickle(sample_root: Path) -> None:
    benchmark = pickle.loads(pickle.dumps(BENCHMARKS["coco_voc"](sample_root / "coco")))
    item: Item = pickle.loads(pickle.dumps(benchmark.index("val")[0]))
    assert benchmark.read(item).mask.shape == decode_image(benchmark.read(item).image).shape[:2]
