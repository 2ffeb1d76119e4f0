"""Labels as tools export them: each format in its own layout, the masks against arrays that were drawn by hand."""

import json
import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from exported import (
    PARQUET_MASK,
    ROBOFLOW_MASK,
    SIZE,
    VOC_MASK,
    box,
    class_masks,
    colour_masks,
    cvat,
    filled,
    labelme,
    parquet,
    picture,
    roboflow,
    supervisely,
    voc,
    write_json,
    yolo,
)  # fmt: skip
from PIL import Image

from datasets.exports.catalog import FORMATS, own_data, own_tree
from datasets.exports.records import Own, Told
from datasets.sample import DataError


def own(root: Path, labels: str | None = None, tile: int = 0, count: bool = False, **told: object) -> Own:
    return own_data(root, labels, Told(**told), tile, count)  # type: ignore[arg-type]


def masks(found: Own) -> dict[str, dict[str, np.ndarray | None]]:
    """Split -> id -> mask, read by a pickled copy, as in a task."""
    copy = pickle.loads(pickle.dumps(found.benchmark))
    return {split: {item.id: copy.read(pickle.loads(pickle.dumps(item))).mask for item in copy.index(split)}
            for split in copy.splits}  # fmt: skip


def tallied(found: Own) -> dict[str, tuple[int | None, int, int]]:
    return {tally.name: (tally.objects, tally.images, tally.pixels) for tally in found.tallies}


def notes(found: Own) -> str:
    return "\n".join(found.benchmark.notes)


class TestCoco:
    def test_roboflow(self, tmp_path: Path) -> None:
        found = own(roboflow(tmp_path))
        assert (found.format, found.why) == ("coco", "test/_annotations.coco.json is named as Roboflow's COCO")
        assert found.benchmark.classes == ("background", "gull", "tern")
        assert "stands above others: 'birds-UvCx'" in notes(found)
        drawn = masks(found)
        assert {split: list(rows) for split, rows in drawn.items()} == {
            "train": ["a_jpg.rf.1b"], "val": ["b_jpg.rf.2c"], "test": ["c_jpg.rf.3d"]}  # fmt: skip
        for rows in drawn.values():
            np.testing.assert_array_equal(next(iter(rows.values())), ROBOFLOW_MASK)
        assert tallied(found) == {"background": (0, 0, 0), "gull": (3, 3, 60), "tern": (3, 3, 12)}

    def test_cvat_polygons_run_lengths_crowds_and_an_empty_image(self, tmp_path: Path) -> None:
        found = own(cvat(tmp_path))
        assert found.benchmark.classes == ("background", "Straße", "tree")
        rows = masks(found)["train"]
        expected = filled(SIZE, (2, 0, 0, 2, 2), (1, 0, 4, 3, 6), (255, 4, 2, 5, 4))
        expected[:, 7] = 255  # the crowd, where the tree is not
        expected[:2, 6:] = 2
        np.testing.assert_array_equal(rows["1"], expected)
        np.testing.assert_array_equal(rows["2"], np.zeros(SIZE))
        assert "1 image(s) are annotated and have no object" in notes(found)
        assert tallied(found)["(ignored)"] == (1, 1, 8)

    def test_the_smaller_is_seen_and_of_equal_ones_the_later(self, tmp_path: Path) -> None:
        path = roboflow(tmp_path) / "train/_annotations.coco.json"
        page = json.loads(path.read_text())
        outlines = [box(0, 0, 2, 2), box(0, 0, 4, 4), box(1, 0, 3, 2)]  # 4 pixels, 16, and 4 again
        page["annotations"] = [{"id": i, "image_id": 0, "category_id": 1 + i % 2, "segmentation": [outline]}
                               for i, outline in enumerate(outlines)]  # fmt: skip
        write_json(path, page)
        expected = filled(SIZE, (2, 0, 0, 4, 4), (1, 0, 0, 2, 2), (1, 1, 0, 3, 2))
        np.testing.assert_array_equal(next(iter(masks(own(tmp_path))["train"].values())), expected)

    def test_unlabelled_area_is_ignored_as_told(self, tmp_path: Path) -> None:
        found = own(roboflow(tmp_path), unlabelled="ignore")
        assert found.benchmark.classes == ("gull", "tern")
        expected = np.array([255, 0, 1], np.uint8)[ROBOFLOW_MASK]
        np.testing.assert_array_equal(next(iter(masks(found)["val"].values())), expected)
        assert found.benchmark.ignored == "unlabelled area, as told and crowds"

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"segmentation": []}, r"annotation 0 \(gull\) has no outline, only a box.*Export the project as segm"),
            ({"segmentation": [box(1, 1, 12, 5)]}, r"it reaches from \(1, 1\) to \(12, 5\) .* 8x6 .*outside"),
            ({"segmentation": [box(1, 1, 1200, 5)]}, r"labels of another image, or of this one at another size"),
            ({"segmentation": {"size": [8, 6], "counts": [48]}}, r"run lengths have the size \[8, 6\].*Export"),
            ({"segmentation": {"size": [6, 8], "counts": "abc"}}, r"run lengths"),
            ({"category_id": 9}, r"annotations are of categories 9, which the file does not list"),
            ({"image_id": 9}, r"annotation 0 belongs to image 9, which the file does not list"),
            ({"segmentation": 3}, r"train/_annotations\.coco\.json: not COCO's annotations"),
        ],
    )  # fmt: skip
    def test_wrong_annotations_name_file_and_cure(self, tmp_path: Path, change: dict, match: str) -> None:
        path = roboflow(tmp_path) / "train/_annotations.coco.json"
        page = json.loads(path.read_text())
        page["annotations"][0] |= change
        write_json(path, page)
        with pytest.raises(DataError, match=match) as refused:
            own(tmp_path)
        assert "train/_annotations.coco.json" in str(refused.value)

    def test_what_reaches_beyond_is_cut_as_told(self, tmp_path: Path) -> None:
        path = roboflow(tmp_path) / "train/_annotations.coco.json"
        page = json.loads(path.read_text())
        page["annotations"] = [page["annotations"][0] | {"segmentation": [box(-3, 2, 2, 9)]}]
        write_json(path, page)
        found = own(tmp_path, outside=True)
        np.testing.assert_array_equal(next(iter(masks(found)["train"].values())), filled(SIZE, (1, 0, 2, 2, 6)))
        assert "cut at the image's edge, 1 outline(s): train/_annotations.coco.json, annotation 0" in notes(found)

    def test_outlines_without_a_pixel_are_counted(self, tmp_path: Path) -> None:
        path = roboflow(tmp_path) / "train/_annotations.coco.json"
        page = json.loads(path.read_text())
        page["annotations"][0]["segmentation"] = [[1, 1, 2, 2]]  # two corners
        page["annotations"][1]["segmentation"] = [box(2.1, 2.1, 2.2, 2.2), box(4, 4, 5, 5)]
        write_json(path, page)
        found = own(tmp_path)
        np.testing.assert_array_equal(next(iter(masks(found)["train"].values())), filled(SIZE, (2, 4, 4, 5, 5)))
        assert "no pixel's centre lies inside 1 outline(s): train/_annotations.coco.json, annotation 0" in notes(found)

    def test_two_categories_of_one_name(self, tmp_path: Path) -> None:
        path = roboflow(tmp_path) / "valid/_annotations.coco.json"
        page = json.loads(path.read_text())
        page["categories"][2]["name"] = "gull"
        write_json(path, page)
        with pytest.raises(DataError, match=r"valid/.*two categories are called 'gull'; rename one in the tool"):
            own(tmp_path)

    def test_empty_file_and_missing_image(self, tmp_path: Path) -> None:
        root = roboflow(tmp_path)
        (root / "valid/b_jpg.rf.2c.jpg").unlink()
        with pytest.raises(DataError, match=r"annotations whose image is not there: b_jpg.*--allow-unpaired"):
            own(root)
        found = own(root, unpaired=True)
        assert list(masks(found)) == ["train", "test"]
        assert "left out, 1 annotation(s) whose image is not there" in notes(found)
        (root / "valid/_annotations.coco.json").write_text("")
        with pytest.raises(DataError, match=r"valid/_annotations.coco.json: the file is empty; export"):
            own(root)
        (root / "valid/_annotations.coco.json").write_text('{"images": [')
        with pytest.raises(DataError, match=r"valid/_annotations.coco.json: no JSON .*cut or changed"):
            own(root)

    def test_images_without_annotation_as_told(self, tmp_path: Path) -> None:
        root = roboflow(tmp_path)
        picture(root / "train/later.jpg")
        with pytest.raises(DataError, match=r"1 image\(s\) without an annotation: train/later.jpg.*d empty"):
            own(root)
        assert "later" not in masks(own(root, unannotated="drop"))["train"]
        np.testing.assert_array_equal(masks(own(root, unannotated="empty"))["train"]["later"], np.zeros(SIZE))

    def test_a_page_sets_the_order_and_ignores(self, tmp_path: Path) -> None:
        (roboflow(tmp_path) / "classes.yaml").write_text("classes: [tern]\npalette: [[1, 2, 3]]\nignore: [gull]\n")
        found = own(tmp_path)
        assert (found.benchmark.classes, found.benchmark.palette[1]) == (("background", "tern"), (1, 2, 3))
        expected = np.array([0, 255, 1], np.uint8)[ROBOFLOW_MASK]
        np.testing.assert_array_equal(next(iter(masks(found)["train"].values())), expected)
        (tmp_path / "classes.yaml").write_text("classes: [tern]\n")
        with pytest.raises(DataError, match=r"classes.yaml: the labels have 'gull' too; add each to classes or to ig"):
            own(tmp_path)


class TestLabelme:
    def expected(self) -> np.ndarray:
        # classes by name: ball 1, door 2, house 3; the ball's centre is that of pixel (6, 0)
        mask = filled(SIZE, (3, 1, 1, 7, 5), (2, 2, 2, 4, 4), (0, 5, 4, 7, 5), (255, 0, 5, 1, 6))
        mask[0, 5:8] = mask[1, 6] = 1
        return mask

    def test_shapes(self, tmp_path: Path) -> None:
        found = own(labelme(tmp_path))
        assert (found.format, found.benchmark.classes) == ("labelme", ("background", "ball", "door", "house"))
        drawn = masks(found)["train"]
        assert list(drawn) == ["photos/eins"]
        np.testing.assert_array_equal(drawn["photos/eins"], self.expected())
        assert tallied(found)["(ignored)"] == (1, 1, 1)
        assert "not used" not in notes(found)

    def test_unicode_names_in_either_form(self, tmp_path: Path) -> None:
        page = {"shapes": [{"label": label, "points": [[0, 0], [2, 0], [2, 2], [0, 2]], "shape_type": "polygon"}
                           for label in ("Gebäude", "Geba\u0308ude", "gebäude ")]}  # fmt: skip
        found = own(labelme(tmp_path, "schön", **page))
        assert found.benchmark.classes == ("background", "Gebäude", "gebäude")
        assert "WARNING: 'Gebäude', 'gebäude' are read as 2 classes" in notes(found)

    def test_lines_are_refused_or_drawn_as_told(self, tmp_path: Path) -> None:
        line = {"label": "wire", "points": [[0.5, 2.5], [7.5, 2.5]], "shape_type": "linestrip"}
        root = labelme(tmp_path, shapes=[line])
        with pytest.raises(DataError, match=r"eins.json: shape 0 \(wire\): a line encloses no pixel.*--line-width"):
            own(root)
        drawn = masks(own(root, line_width=1))["train"]["photos/eins"]
        np.testing.assert_array_equal(drawn, filled(SIZE, (1, 0, 2, 8, 3)))
        labelme(tmp_path, shapes=[line | {"shape_type": "point", "points": [[1, 1]]}])
        with pytest.raises(DataError, match="a point encloses no pixel"):
            own(root, line_width=1)

    @pytest.mark.parametrize("turn", [3, 6, 8])
    def test_photographs_that_viewers_turn(self, tmp_path: Path, turn: int) -> None:
        root = labelme(tmp_path, imageHeight=8, imageWidth=6)
        picture(root / "photos/eins.jpg", exif=turn)
        shows = "does not show which" if turn == 3 else "made of the picture as shown"
        with pytest.raises(DataError, match=rf"eins.jpg: its EXIF orientation is {turn}.*{shows}.*mogrify -auto"):
            own(root)
        labelme(tmp_path)  # its labels are as the pixels are stored
        picture(root / "photos/eins.jpg", exif=turn)
        if turn == 3:  # which a half turn does not show
            with pytest.raises(DataError, match="its EXIF orientation is 3"):
                own(root)
        else:
            np.testing.assert_array_equal(masks(own(root))["train"]["photos/eins"], self.expected())

    def test_sizes_that_disagree(self, tmp_path: Path) -> None:
        root = labelme(tmp_path, imageHeight=60, imageWidth=80)
        with pytest.raises(DataError, match=r"eins.jpg: the image is 8x6 pixels .*eins.json says 80x60"):
            own(root)

    def test_only_damaged_images_wait_until_they_are_read(self, tmp_path: Path) -> None:
        root = labelme(labelme(tmp_path), "zwei")
        (root / "photos/zwei.jpg").write_bytes(b"")
        benchmark = own(root).benchmark
        good, bad = benchmark.index("train")
        assert benchmark.read(good).mask is not None
        with pytest.raises(DataError, match=r"zwei\.jpg") as refused:
            benchmark.read(bad)
        assert refused.value.kind == "damaged"


class TestSupervisely:
    def test_holes_bitmaps_and_colours(self, tmp_path: Path) -> None:
        found = own(supervisely(tmp_path))
        assert (found.format, found.benchmark.classes) == ("supervisely", ("background", "field", "pond"))
        assert found.benchmark.palette[1:] == ((10, 20, 255), (255, 0, 0))
        expected = filled(SIZE, (1, 0, 0, 6, 6), (0, 2, 2, 4, 4), (2, 7, 0, 8, 1))
        expected[3, 6] = expected[4, 6] = expected[4, 7] = 2
        drawn = masks(found)
        np.testing.assert_array_equal(drawn["train"]["x.y"], expected)
        np.testing.assert_array_equal(drawn["val"]["z"], expected)
        assert "not used: 1 file: obj_class_to_machine_color.json" in notes(found)

    def test_a_bitmap_that_does_not_read(self, tmp_path: Path) -> None:
        path = supervisely(tmp_path) / "val/ann/z.png.json"
        page = json.loads(path.read_text())
        page["objects"][1]["bitmap"]["data"] = "AAAA"
        write_json(path, page)
        with pytest.raises(DataError, match=r"val/ann/z.png.json: object 12 \(pond\): its bitmap does not read"):
            own(tmp_path)


class TestYolo:
    def test_polygons(self, tmp_path: Path) -> None:
        found = own(yolo(tmp_path))
        assert (found.format, found.benchmark.classes) == ("yolo", ("background", "leaf", "stem"))
        drawn = masks(found)
        np.testing.assert_array_equal(drawn["train"]["p"], filled(SIZE, (2, 1, 3, 4, 6), (1, 0, 0, 2, 2)))
        assert not drawn["train"]["q"].any()
        assert list(drawn["val"]) == ["r"]

    @pytest.mark.parametrize(
        ("line", "match"),
        [
            ("0 0.5 0.5 0.2 0.2", r"labels/train/p.txt: line 3: 4 numbers after the class are a box.*segmentation"),
            ("2 0 0 1 0 1 1", r"line 3: class 2; data.yaml names 0 to 1"),
            ("0 0 0 1 0 1 1 1", r"line 3: 7 numbers after the class; expected are pairs"),
            ("0 a b", r"line 3: '0 a b' are no numbers"),
            ("0 0 0 1.5 0 1 1", r"line 3 \(leaf\): it reaches from \(0, 0\) to \(12, 6\)"),
        ],
    )  # fmt: skip
    def test_wrong_lines(self, tmp_path: Path, line: str, match: str) -> None:
        with pytest.raises(DataError, match=match):
            own(yolo(tmp_path, line))

    def test_roboflow_layout_lists_and_labels_without_image(self, tmp_path: Path) -> None:
        root = yolo(tmp_path / "a")
        other = tmp_path / "b"
        for split, to in (("train", "train"), ("val", "valid")):
            shutil.copytree(root / f"images/{split}", other / f"{to}/images")
            shutil.copytree(root / f"labels/{split}", other / f"{to}/labels")
        (other / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnames: ['leaf', 'stem']\n")
        assert {split: list(rows) for split, rows in masks(own(other)).items()} == {"train": ["p", "q"], "val": ["r"]}
        (root / "data.yaml").write_text("train: train.txt\nnames: [leaf, stem]\n")
        (root / "train.txt").write_text("./images/train/p.jpg\r\n./images/val/r.jpg\r\n")
        with pytest.raises(DataError, match=r"annotations whose image is not there: images/train/q"):
            own(root)
        assert list(masks(own(root, unpaired=True))["train"]) == ["p", "r"]

    def test_names_twice_and_counts(self, tmp_path: Path) -> None:
        page = yolo(tmp_path) / "data.yaml"
        page.write_text("train: images/train\nnames: [leaf, leaf]\n")
        with pytest.raises(DataError, match="two classes are called 'leaf'"):
            own(tmp_path)
        page.write_text("train: images/train\nnc: 3\nnames: [leaf, stem]\n")
        with pytest.raises(DataError, match=r"data.yaml: nc is 3, names lists 2"):
            own(tmp_path)


class TestVoc:
    @pytest.mark.parametrize("table", ["class_names", "labelmap"])
    def test_palette_and_rgb(self, tmp_path: Path, table: str) -> None:
        found = own(voc(tmp_path, table))
        assert (found.format, found.benchmark.classes) == ("voc_xml", ("background", "cup", "spoon"))
        assert found.benchmark.palette == ((0, 0, 0), (128, 0, 0), (0, 128, 0))
        drawn = masks(found)
        ids = {"train": ["k"], "val": ["l"]} if table == "class_names" else {"train": ["k", "l"]}
        assert {split: list(rows) for split, rows in drawn.items()} == ids
        np.testing.assert_array_equal(drawn["train"]["k"], VOC_MASK)
        assert tallied(found) == {"background": (None, 2, 2 * 24), "cup": (None, 2, 2 * 12), "spoon": (None, 2, 8),
                                  "(ignored)": (None, 2, 16)}  # fmt: skip
        assert "Annotations/*.xml list 2 cup" in notes(found)
        ignoring = own(tmp_path, unlabelled="ignore")
        assert ignoring.benchmark.classes == ("cup", "spoon")
        expected = np.where(VOC_MASK == 0, 255, np.where(VOC_MASK == 255, 255, VOC_MASK - 1))
        np.testing.assert_array_equal(masks(ignoring)["train"]["k"], expected)

    def test_vocs_own_classes_and_a_value_without_one(self, tmp_path: Path) -> None:
        root = voc(tmp_path)
        (root / "class_names.txt").unlink()
        assert own(root).benchmark.classes[:3] == ("background", "aeroplane", "bicycle")
        Image.fromarray(np.full(SIZE, 33, np.uint8)).save(root / "SegmentationClassPNG/l.png")
        with pytest.raises(DataError, match=r"l.png: label value 33 at row 0, column 0"):
            own(root)

    def test_boxes_alone_are_refused(self, tmp_path: Path) -> None:
        root = voc(tmp_path)
        shutil.rmtree(root / "SegmentationClassPNG")
        with pytest.raises(DataError, match=r"boxes: a box says not which pixels\. Export segm"):
            own(root, "voc_xml")

    def test_xml_of_another_size_and_masks_of_another(self, tmp_path: Path) -> None:
        page = voc(tmp_path) / "Annotations/k.xml"
        good = page.read_text()
        page.write_text(good.replace("<width>8", "<width>80"))
        with pytest.raises(DataError, match=r"k.jpg: the image is 8x6 .*Annotations/k.xml says 80x6"):
            own(tmp_path)
        page.write_text(good[:40])
        with pytest.raises(DataError, match=r"Annotations/k.xml: no XML"):
            own(tmp_path)
        page.write_text(good)
        picture(tmp_path / "JPEGImages/k.jpg", (8, 6))
        with pytest.raises(DataError, match=r"k.jpg: the image is 6x8 pixels .*k.xml says 8x6"):
            own(tmp_path)


class TestMasks:
    @pytest.mark.parametrize("by_folder", [False, True])
    def test_one_mask_per_class(self, tmp_path: Path, by_folder: bool) -> None:
        found = own(class_masks(tmp_path, by_folder))
        assert (found.format, found.benchmark.classes) == ("masks", ("background", "lesion", "organ"))
        drawn = masks(found)["train"]
        np.testing.assert_array_equal(drawn["s.1"], filled(SIZE, (2, 1, 1, 6, 5), (1, 3, 2, 5, 4)))
        np.testing.assert_array_equal(drawn["s.2"], filled(SIZE, (2, 1, 1, 6, 5)))
        assert tallied(found)["lesion"] == (None, 1, 4)

    def test_smoothed_and_coloured_masks(self, tmp_path: Path) -> None:
        root = class_masks(tmp_path)
        Image.fromarray(filled(SIZE, (255, 0, 0, 4, 4), (7, 1, 1, 2, 2))).save(root / "masks/s.1.lesion.png")
        with pytest.raises(DataError, match=r"s.1.lesion.png: a mask of one class holds 7, 255 besides 0"):
            own(root)
        Image.fromarray(np.full((*SIZE, 3), (1, 2, 3), np.uint8)).save(root / "masks/s.1.lesion.png")
        with pytest.raises(DataError, match=r"s.1.lesion.png: a mask of one class has colours"):
            own(root)

    def test_masks_of_two_sizes_and_of_no_image(self, tmp_path: Path) -> None:
        root = class_masks(tmp_path)
        Image.fromarray(np.zeros((8, 6), np.uint8)).save(root / "masks/s.1.lesion.png")
        with pytest.raises(DataError, match=r"masks of one image have 2 sizes"):
            own(root)
        (root / "masks/s.1.lesion.png").rename(root / "masks/t.9.lesion.png")
        with pytest.raises(DataError, match=r"masks without an image: masks/t.9.lesion.png"):
            own(root)


class TestColours:
    def test_class_dict(self, tmp_path: Path) -> None:
        found = own(colour_masks(tmp_path))
        assert (found.format, found.benchmark.classes) == ("colours", ("background", "building", "land"))
        assert found.benchmark.palette[1] == (60, 16, 152)
        np.testing.assert_array_equal(masks(found)["train"]["m"], filled(SIZE, (1, 0, 1, 8, 3), (2, 4, 3, 8, 6)))

    def test_wrong_tables(self, tmp_path: Path) -> None:
        table = colour_masks(tmp_path) / "class_dict.csv"
        table.write_text("name,r,g,b\nbuilding,60,16,152\nland,60,16,152\n")
        with pytest.raises(DataError, match=r"class_dict.csv: line 3: the colour \[60, 16, 152\] or the name 'land'"):
            own(tmp_path)
        table.write_text("name,r,g,b\nbuilding,60,16\n")
        with pytest.raises(DataError, match=r"class_dict.csv: line 2 is no name with a colour"):
            own(tmp_path)
        table.write_text("name,r,g,b\nbuilding,60,16,152\nbackground,0,0,0\n")
        with pytest.raises(DataError, match=r"2 masks are wrong:\n.*m.png: colour \[132, 41, 246\] at row 3, column 4"):
            own(tmp_path)


class TestParquet:
    @pytest.mark.parametrize("column", ["label", "annotation", "mask"])
    def test_ids_in_masks(self, tmp_path: Path, column: str) -> None:
        found = own(parquet(tmp_path, column))
        assert (found.format, found.benchmark.classes) == ("hf", ("background", "sky", "kite"))
        drawn = masks(found)
        assert {split: list(rows) for split, rows in drawn.items()} == {
            "train": ["train0", "train1", "train2"], "val": ["validation0"]}  # fmt: skip
        for rows in drawn.values():
            for mask in rows.values():
                np.testing.assert_array_equal(mask, PARQUET_MASK)
        image = cv2.imdecode(np.frombuffer(found.benchmark.read(found.benchmark.index("train")[2]).image, np.uint8), 1)
        assert image[0, 0, 0] == 20 * 2 + len("train")
        assert tallied(found)["kite"] == (None, 4, 4 * 6)

    def test_without_names_values_are_classes(self, tmp_path: Path) -> None:
        found = own(parquet(tmp_path, names=False))
        assert found.benchmark.classes == ("background", "value 3", "value 7")
        assert "no id2label.json and no classes.yaml" in notes(found)

    def test_a_value_without_a_name(self, tmp_path: Path) -> None:
        write_json(parquet(tmp_path) / "id2label.json", {"3": "sky"})
        with pytest.raises(DataError, match=r"masks hold the value\(s\) 7, which no class has; name them in id2label"):
            own(tmp_path)


class TestRecognition:
    def test_two_formats_are_asked_for(self, tmp_path: Path) -> None:
        yolo(roboflow(tmp_path))
        with pytest.raises(DataError, match=r"read in 2 ways; choose one:\n  --labels coco: .*\n  --labels yolo"):
            own(tmp_path)
        assert own(tmp_path, "coco").why == ""

    def test_no_format_shows_what_is_expected(self, tmp_path: Path) -> None:
        picture(tmp_path / "images/a.jpg")
        with pytest.raises(DataError, match=r"classes.yaml[\s\S]*no labels of a known tool .coco, [\s\S]*--tree"):
            own(tmp_path)

    @pytest.mark.parametrize("name", FORMATS)
    def test_a_format_that_is_asked_for_and_not_there(self, tmp_path: Path, name: str) -> None:
        picture(tmp_path / "images/a.jpg")
        with pytest.raises(DataError, match=r"Expected is:\nDIR/"):
            own(tmp_path, name)
        assert f"--labels {name}: " in own_tree()

    def test_a_page_that_names_values_decides(self, tmp_path: Path) -> None:
        root = labelme(tmp_path)
        (root / "masks").mkdir()
        (root / "photos").rename(root / "images")
        Image.fromarray(np.full(SIZE, 1, np.uint8)).save(root / "masks/eins.png")
        (root / "classes.yaml").write_text("classes: [a, b]\n")
        found = own(root, count=True)
        assert (found.format, found.why) == ("values", "classes.yaml beside images/ and masks/")
        assert tallied(found) == {"a": (None, 0, 0), "b": (None, 1, 48)}

    def test_options_that_a_format_cannot_follow_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"--line-width is for labels of outlines .coco, labelme, supervisely, y"):
            own(class_masks(tmp_path / "a"), line_width=2)
        with pytest.raises(DataError, match="--allow-outside is for labels of outlines"):
            own(parquet(tmp_path / "b"), outside=True)
        root = voc(tmp_path / "c")
        (root / "class_names.txt").unlink()
        (root / "classes.yaml").write_text("classes: {0: table, 1: cup, 2: spoon}\n")
        with pytest.raises(DataError, match=r"--unlabelled ignore: classes.yaml says what values mean"):
            own(root, unlabelled="ignore")
        assert own(root).benchmark.classes == ("table", "cup", "spoon")

    def test_val_is_split_off(self, tmp_path: Path) -> None:
        root = tmp_path
        for i in range(10):
            labelme(root, f"n{i}")
        found = own(root, val=0.2)
        assert {split: len(rows) for split, rows in masks(found).items()} == {"train": 8, "val": 2}
