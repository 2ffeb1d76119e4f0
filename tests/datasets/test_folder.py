"""The user's own folder: lists, subfolders, pairs.csv, masks of values and of colours."""

import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from miniatures import write_own
from PIL import Image

from datasets.readers.folder import folder
from datasets.sample import DataError


class TestFolder:
    def test_mapping_of_values(self, tmp_path: Path) -> None:
        write_own(tmp_path, count=1)
        settings = {"classes": {2: "tree", 0: "road"}, "ignore": [1, 255], "palette": [[1, 2, 3], [4, 5, 6]]}
        (tmp_path / "classes.yaml").write_text(yaml.safe_dump(settings))
        own = folder(tmp_path)
        assert (own.classes, own.palette) == (("road", "tree"), ((1, 2, 3), (4, 5, 6)))
        item = own.index("train")[0]
        stored = cv2.imread(str(item.label), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(own.read(item).mask, np.array([0, 255, 1] + [255] * 253, np.uint8)[stored])

    def test_wrong_value_names_pixel_and_allowed(self, tmp_path: Path) -> None:
        own = folder(write_own(tmp_path, count=1))
        item = own.index("train")[0]
        mask = np.zeros((40, 50), np.uint8)
        mask[12, 34] = mask[20, 1] = 9
        cv2.imwrite(str(item.label), mask)
        with pytest.raises(DataError, match=r"000\.png: label value 9 at row 12, column 34 .*allowed are 0-2, 255"):
            own.read(item)

    def test_two_sizes(self, tmp_path: Path) -> None:
        own = folder(write_own(tmp_path, count=1))
        item = own.index("train")[0]
        cv2.imwrite(str(item.label), np.zeros((50, 40), np.uint8))
        with pytest.raises(DataError, match=r"image is 50x40 pixels .* its mask 40x50"):
            own.read(item)

    def test_colour_mask(self, tmp_path: Path) -> None:
        own = folder(write_own(tmp_path, count=1))
        item = own.index("train")[0]
        cv2.imwrite(str(item.label), np.zeros((40, 50, 3), np.uint8))
        with pytest.raises(DataError, match="mode RGB; allowed are grey or palette"):
            own.read(item)

    def test_lists(self, tmp_path: Path) -> None:
        write_own(tmp_path)
        (tmp_path / "train.txt").write_text("003\r\n001.jpg\r\n", encoding="utf-8-sig")  # as Windows' editor saves it
        (tmp_path / "val.txt").write_text("009\n")
        own = folder(tmp_path)
        assert own.splits == {"train": None, "val": None}
        assert [[item.id for item in own.index(split)] for split in own.splits] == [["003", "001"], ["009"]]
        (tmp_path / "val.txt").write_text("012\n")
        with pytest.raises(DataError, match=r"1 file is missing:\n.*012\.jpg"):
            own.index("val")

    def test_subfolders_and_a_split_without_masks(self, tmp_path: Path) -> None:
        write_own(tmp_path / "all", count=2)
        for split in ("train", "test"):
            (tmp_path / "own/images" / split).mkdir(parents=True)
            shutil.copy(tmp_path / "all/images/000.jpg", tmp_path / f"own/images/{split}/x.jpg")
        (tmp_path / "own/masks/train").mkdir(parents=True)
        (tmp_path / "all/masks/000.png").rename(tmp_path / "own/masks/train/x.png")
        (tmp_path / "all/classes.yaml").rename(tmp_path / "own/classes.yaml")
        own = folder(tmp_path / "own")
        assert list(own.splits) == ["train", "test"]
        assert own.read(own.index("train")[0]).mask is not None
        assert own.read(own.index("test")[0]).mask is None

    @pytest.mark.parametrize(
        ("settings", "match"),
        [
            ({"names": ["a"]}, "needed is classes"),
            ({"classes": {300: "a"}}, "mapping of mask values"),
            ({"classes": ["a", "a"]}, "occurs twice"),
            ({"classes": ["a"], "ignore": [0]}, "both a class and ignored"),
            ({"classes": ["a", "b"], "palette": [[0, 0, 0]]}, "expected are 2 colours"),
        ],
    )
    def test_wrong_settings(self, tmp_path: Path, settings: dict, match: str) -> None:
        (tmp_path / "classes.yaml").write_text(yaml.safe_dump(settings))
        with pytest.raises(DataError, match=match):
            folder(tmp_path)

    def test_grey_masks_of_16_bits(self, tmp_path: Path) -> None:
        write_own(tmp_path, count=1)
        (tmp_path / "classes.yaml").write_text(yaml.safe_dump({"classes": {7: "road", 200: "car"}, "ignore": [0]}))
        own = folder(tmp_path)
        item = own.index("train")[0]
        mask = np.full((40, 50), 7, np.uint16)
        mask[0, :2] = 200, 0
        cv2.imwrite(str(item.label), mask)
        assert own.read(item).mask[0, :3].tolist() == [1, 255, 0]
        mask[3, 4] = 256 + 7
        cv2.imwrite(str(item.label), mask)
        with pytest.raises(DataError, match=r"000\.png: label value 263 at row 3, column 4"):
            own.read(item)

    def test_one_class_may_have_a_palette_png(self, tmp_path: Path) -> None:
        own = folder(write_own(tmp_path, count=1))
        item = own.index("train")[0]
        indices = np.arange(40 * 50, dtype=np.uint8).reshape(40, 50) % 3
        image = Image.fromarray(indices).convert("P")
        image.putdata(indices.reshape(-1).tolist())
        image.putpalette([9, 9, 9, 8, 8, 8, 0, 0, 0])
        image.save(str(item.label))
        np.testing.assert_array_equal(own.read(item).mask, indices)


COLOURS = {"colours": {"road": [128, 64, 128], "car": [[0, 0, 142], [0, 0, 70]]}, "ignore": [[0, 0, 0]]}


class TestColours:
    def write(self, root: Path, mask: np.ndarray, **settings: object) -> Path:
        """Write one image and its mask of RGB colours."""
        for kind in ("images", "masks"):
            (root / kind).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / "images/a b.jpg"), np.zeros_like(mask))
        cv2.imwrite(str(root / "masks/a b.png"), mask[..., ::-1])
        (root / "classes.yaml").write_text(yaml.safe_dump(COLOURS | settings, sort_keys=False))
        return root

    def test_colours_are_classes(self, tmp_path: Path) -> None:
        mask = np.array([[(128, 64, 128), (0, 0, 142)], [(0, 0, 70), (0, 0, 0)]], np.uint8)
        own = pickle.loads(pickle.dumps(folder(self.write(tmp_path, mask))))
        assert (own.classes, own.palette) == (("road", "car"), ((128, 64, 128), (0, 0, 142)))
        np.testing.assert_array_equal(own.read(own.index("train")[0]).mask, [[0, 1], [1, 255]])

    def test_classes_set_their_order(self, tmp_path: Path) -> None:
        mask = np.full((2, 2, 3), (128, 64, 128), np.uint8)
        own = folder(self.write(tmp_path, mask, classes=["car", "road"], palette=[[1, 1, 1], [2, 2, 2]]))
        assert (own.classes, own.palette) == (("car", "road"), ((1, 1, 1), (2, 2, 2)))
        assert own.read(own.index("train")[0]).mask[0, 0] == 1

    def test_another_colour_is_named_with_its_pixel(self, tmp_path: Path) -> None:
        mask = np.full((4, 5, 3), (128, 64, 128), np.uint8)
        mask[2, 3] = 128, 64, 127
        own = folder(self.write(tmp_path, mask))
        with pytest.raises(DataError, match=r"a b\.png: colour \[128, 64, 127\] at row 2, column 3 \(1 such"):
            own.read(own.index("train")[0])

    @pytest.mark.parametrize("mode", ["P", "RGBA"])
    def test_palette_and_opaque_masks_have_colours_too(self, tmp_path: Path, mode: str) -> None:
        mask = np.full((4, 5, 3), (128, 64, 128), np.uint8)
        mask[0, 0] = 0, 0, 70
        own = folder(self.write(tmp_path, mask))
        item = own.index("train")[0]
        Image.fromarray(mask).convert(mode, palette=Image.Palette.ADAPTIVE).save(str(item.label))
        expected = np.zeros((4, 5), np.uint8)
        expected[0, 0] = 1
        np.testing.assert_array_equal(own.read(item).mask, expected)

    @pytest.mark.parametrize(("mode", "match"), [("L", "mode L"), ("RGBA", "mode RGBA with transparent pixels")])
    def test_masks_without_certain_colours(self, tmp_path: Path, mode: str, match: str) -> None:
        own = folder(self.write(tmp_path, np.zeros((4, 5, 3), np.uint8)))
        item = own.index("train")[0]
        Image.new(mode, (5, 4)).save(str(item.label))
        with pytest.raises(DataError, match=rf"a mask of {match}; expected is an RGB PNG"):
            own.read(item)

    @pytest.mark.parametrize(
        ("settings", "match"),
        [
            ({"colours": ["road"]}, "colours is"),
            ({"colours": {"road": [1, 2]}}, "road is"),
            ({"colours": {"road": []}}, "road is"),
            ({"ignore": [0]}, "ignore is"),
            ({"ignore": [[0, 0, 142]]}, r"\[0, 0, 142\] has two meanings"),
            ({"classes": ["road", "sky"]}, "'car' is in only one of classes and colours"),
            ({"palette": [[0, 0, 0]]}, "expected are 2 colours"),
        ],
    )
    def test_wrong_settings(self, tmp_path: Path, settings: dict, match: str) -> None:
        with pytest.raises(DataError, match=match):
            folder(self.write(tmp_path, np.zeros((4, 5, 3), np.uint8), **settings))


class TestPairs:
    def write(self, root: Path, *lines: str) -> Path:
        """Write three images with masks in folders of other names, and the given `pairs.csv`."""
        write_own(root, count=3)
        (root / "images").rename(root / "my photos")
        (root / "masks").rename(root / "drawn")
        (root / "pairs.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
        return root

    def test_splits(self, tmp_path: Path) -> None:
        own = folder(
            self.write(
                tmp_path,
                "image,mask,split",
                "my photos/002.jpg,drawn/002.png,val",
                "my photos/001.jpg,drawn/000.png,train",
                "my photos\\000.jpg , drawn\\000.png,train",
            )
        )
        assert list(own.splits) == ["train", "val"]
        assert [item.id for item in own.index("train")] == ["my photos/001", "my photos/000"]
        assert own.index("train")[0].label == str(tmp_path / "drawn/000.png")
        assert own.read(own.index("val")[0]).mask.shape == (40, 50)

    def test_without_a_column_of_splits_all_is_train(self, tmp_path: Path) -> None:
        own = folder(self.write(tmp_path, "image,mask", "my photos/000.jpg,drawn/000.png"))
        assert [item.id for item in own.index("train")] == ["my photos/000"]

    def test_a_split_without_masks(self, tmp_path: Path) -> None:
        own = folder(self.write(tmp_path, "image,mask,split", "my photos/000.jpg,,test"))
        assert own.read(own.index("test")[0]).mask is None

    @pytest.mark.parametrize(
        ("lines", "match"),
        [
            (["image mask", "a b"], r"the first line is 'image mask'; expected is image,mask"),
            (["image,mask"], "no row below the first line"),
            (["image,mask,split", "a.jpg,b.png,holdout"], "row 2 is .* a split of train, val, test"),
            (["image,mask", ",drawn/000.png"], "row 2 is .* needed are an image"),
            (["image,mask", "my photos/009.jpg,drawn/000.png"], r"1 file is missing:\n.*009\.jpg"),
            (["image,mask", "my photos/000.jpg,drawn/009.png"], r"1 file is missing:\n.*009\.png"),
            (["image,mask", "my photos/000.jpg,drawn/000.png", "my photos/001.jpg,"], "001 has no mask"),
            (["image,mask", *["my photos/000.jpg,drawn/000.png"] * 2], "'my photos/000' is listed twice in train"),
        ],
    )
    def test_wrong_tables(self, tmp_path: Path, lines: list[str], match: str) -> None:
        self.write(tmp_path, *lines)
        with pytest.raises(DataError, match=match):
            folder(tmp_path).index("train")

    def test_lists_next_to_it(self, tmp_path: Path) -> None:
        self.write(tmp_path, "image,mask", "my photos/000.jpg,drawn/000.png")
        (tmp_path / "val.txt").write_text("000\n")
        with pytest.raises(DataError, match=r"pairs\.csv and val\.txt both name rows"):
            folder(tmp_path)
