"""Your own folder: every file is used, or counted and named; images and masks pair; names of any alphabet."""

import os
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
from miniatures import write_own
from PIL import Image

from datasets.readers.folder import folder
from datasets.readers.own_tree import SPLIT_OF
from datasets.sample import DataError

FORMS = [unicodedata.normalize(form, "Prüfung/Äpfel") for form in ("NFC", "NFD")]


def move(root: Path, old: str, new: str) -> None:
    """Move an image and its mask to another stem or subfolder; a trailing slash keeps the name."""
    for kind, end in (("images", ".jpg"), ("masks", ".png")):
        target = root / kind / f"{new}{end}"
        target.parent.mkdir(parents=True, exist_ok=True)
        (root / kind / f"{old}{end}").rename(target)


def ids(root: Path, **options: object) -> dict[str, list[str]]:
    own = folder(root, **options)
    return {split: [item.id for item in own.index(split)] for split in own.splits}


class TestEverythingIsUsed:
    @pytest.mark.parametrize("suffix", [".jpeg", ".JPG", ".jpe", ".jfif", ".png", ".tif", ".TIFF", ".bmp", ".webp"])
    def test_images_of_every_suffix(self, tmp_path: Path, suffix: str) -> None:
        write_own(tmp_path, count=2)
        Image.open(tmp_path / "images/001.jpg").save(tmp_path / f"images/1{suffix}")
        (tmp_path / "images/001.jpg").unlink()
        (tmp_path / "masks/001.png").rename(tmp_path / "masks/1.png")
        own = folder(tmp_path)
        items = own.index("train")
        assert [item.id for item in items] == ["000", "1"]
        assert own.read(items[1]).mask.shape == (40, 50)
        assert own.notes == ()

    @pytest.mark.parametrize("suffix", [".PNG", ".tif", ".tiff", ".bmp", ".gif"])
    def test_lossless_masks_of_every_suffix(self, tmp_path: Path, suffix: str) -> None:
        write_own(tmp_path, count=1)
        stored = np.asarray(Image.open(tmp_path / "masks/000.png"))
        (tmp_path / "masks/000.png").unlink()
        Image.fromarray(np.where(stored == 255, 2, stored)).save(tmp_path / f"masks/000{suffix}")
        (item,) = folder(tmp_path).index("train")
        assert folder(tmp_path).read(item).mask.shape == (40, 50)

    def test_a_jpeg_among_the_masks_is_refused_by_name(self, tmp_path: Path) -> None:
        write_own(tmp_path, count=1)
        Image.open(tmp_path / "masks/000.png").save(tmp_path / "masks/000.jpg")
        (tmp_path / "masks/000.png").unlink()
        (item,) = folder(tmp_path).index("train")
        with pytest.raises(DataError, match=r"masks/000\.jpg: by its content the mask is a JPEG"):
            folder(tmp_path).read(item)

    def test_subfolders(self, tmp_path: Path) -> None:
        write_own(tmp_path, count=4)
        move(tmp_path, "001", "north/1")
        move(tmp_path, "002", "south/deep/1")
        assert ids(tmp_path) == {"train": ["000", "003", "north/1", "south/deep/1"]}

    @pytest.mark.parametrize("name", [*SPLIT_OF, "Valid", "VALIDATION", "Dev"])
    def test_names_of_splits(self, tmp_path: Path, name: str) -> None:
        write_own(tmp_path / "folders", count=2)
        move(tmp_path / "folders", "000", f"{name}/a")
        move(tmp_path / "folders", "001", f"{name}/deep/b")
        split = SPLIT_OF[name.lower()]
        assert ids(tmp_path / "folders") == {split: ["a", "deep/b"]}
        write_own(tmp_path / "lists", count=2)
        (tmp_path / f"lists/{name}.txt").write_text("001")
        assert ids(tmp_path / "lists") == {split: ["001"]}
        write_own(tmp_path / "pairs", count=2)
        (tmp_path / "pairs/pairs.csv").write_text(f"image,mask,split\nimages/001.jpg,masks/001.png,{name}\n")
        assert ids(tmp_path / "pairs") == {split: ["images/001"]}

    def test_two_names_of_one_split(self, tmp_path: Path) -> None:
        write_own(tmp_path, count=2)
        move(tmp_path, "000", "val/a")
        move(tmp_path, "001", "valid/b")
        with pytest.raises(DataError, match="val and valid both are split val"):
            folder(tmp_path)
        flat = write_own(tmp_path / "flat", count=1)
        for name in ("dev.txt", "val.txt"):
            (flat / name).write_text("000")
        with pytest.raises(DataError, match=r"dev\.txt and val\.txt both list split val"):
            folder(flat)

    def test_what_is_not_used_is_counted_and_named(self, tmp_path: Path) -> None:
        write_own(tmp_path, count=14)
        (tmp_path / "train.txt").write_text("000\n001\n")
        (tmp_path / "README.md").touch()
        (tmp_path / "images/x.heic").touch()
        (tmp_path / ".DS_Store").touch()
        (note,) = folder(tmp_path).notes
        assert "26 files: README.md, images/002.jpg, " in note
        assert note.endswith("images/010.jpg, ... and 16 more")
        (tmp_path / "train.txt").rename(tmp_path / "notes.txt")
        assert folder(tmp_path).notes == (
            "not used (in no list, or of a kind that is not read): 3 files: README.md, images/x.heic, notes.txt",
        )

    def test_images_beside_the_folders_of_splits_are_named(self, tmp_path: Path) -> None:
        write_own(tmp_path, count=3)
        move(tmp_path, "000", "train/a")
        move(tmp_path, "001", "extra/b")
        own = folder(tmp_path)
        assert own.notes[0].endswith("4 files: images/002.jpg, images/extra/b.jpg, masks/002.png, masks/extra/b.png")

    @pytest.mark.parametrize("kind", ["images", "masks"])
    def test_two_files_of_one_stem(self, tmp_path: Path, kind: str) -> None:
        write_own(tmp_path, count=1)
        Image.open(tmp_path / "masks/000.png").save(tmp_path / kind / "000.bmp")
        with pytest.raises(DataError, match=rf"{kind}/000\.bmp and {kind}/000\.\w+ share one stem"):
            folder(tmp_path)


class TestPairing:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        """Images 0 to 13 and masks 12 to 14; the image of mask 14 is of a kind that is not read."""
        write_own(tmp_path, count=15)
        for i in range(12):
            (tmp_path / f"masks/{i:03d}.png").unlink()
        (tmp_path / "images/014.jpg").rename(tmp_path / "images/014.heic")
        return tmp_path

    def test_one_without_the_other_is_an_error_with_its_cure(self, root: Path) -> None:
        with pytest.raises(DataError) as caught:
            folder(root)
        message = str(caught.value)
        assert "images without a mask: 12 files: images/000.jpg, images/001.jpg, " in message
        assert "images/009.jpg, ... and 2 more\n" in message
        assert "masks without an image: 1 file: masks/014.png\n" in message
        assert "not read, of other kinds: 1 file: images/014.heic\n" in message
        assert "--allow-unpaired" in message

    def test_told_they_are_left_out_and_named(self, root: Path) -> None:
        assert ids(root, unpaired=True) == {"train": ["012", "013"]}
        left, unused = folder(root, unpaired=True).notes
        assert "13 files: images/000.jpg" in left
        assert unused.endswith("1 file: images/014.heic")

    def test_lists_name_an_image_without_a_mask(self, root: Path) -> None:
        (root / "train.txt").write_text("003\n012\n")
        with pytest.raises(DataError, match=r"images without a mask: 1 file: images/003\.jpg"):
            folder(root)

    def test_masks_of_another_layout_do_not_make_an_unlabelled_split(self, tmp_path: Path) -> None:
        write_own(tmp_path, count=1)
        (tmp_path / "images/train").mkdir()
        (tmp_path / "images/000.jpg").rename(tmp_path / "images/train/000.jpg")
        with pytest.raises(DataError, match=r"masks without an image: 1 file: masks/000\.png"):
            folder(tmp_path)

    def test_pairs(self, root: Path) -> None:
        (root / "pairs.csv").write_text("image,mask\nimages/012.jpg,masks/012.png\nimages/003.jpg,\n")
        with pytest.raises(DataError, match="images/003 has no mask"):
            folder(root)
        assert ids(root, unpaired=True) == {"train": ["images/012"]}
        assert "left out" in folder(root, unpaired=True).notes[0]

    @pytest.mark.parametrize("target", ["images/000.jpg", "masks/000.png", "train.txt", "images", "classes.yaml"])
    def test_links_that_lead_nowhere(self, tmp_path: Path, target: str) -> None:
        write_own(tmp_path, count=1)
        (tmp_path / target).rename(tmp_path / "gone") if target != "train.txt" else None
        (tmp_path / target).symlink_to("/data/elsewhere/x")
        with pytest.raises(DataError, match=rf"{target}.* \(a link to /data/elsewhere/x, which is not there\)"):
            folder(tmp_path)

    def test_links_that_lead_somewhere(self, tmp_path: Path) -> None:
        write_own(tmp_path / "real", count=2)
        (tmp_path / "own").mkdir()
        for name in ("images", "masks", "classes.yaml"):
            (tmp_path / "own" / name).symlink_to(tmp_path / "real" / name)
        (tmp_path / "real/images/again").symlink_to(tmp_path / "real/images")  # leads back: each image counts once
        assert ids(tmp_path / "own") == {"train": ["000", "001"]}


class TestVal:
    def test_a_reproducible_split(self, tmp_path: Path) -> None:
        write_own(tmp_path / "a", count=30, size=(4, 5))
        parts = ids(tmp_path / "a", val=0.1)
        assert {split: len(names) for split, names in parts.items()} == {"train": 27, "val": 3}
        assert sorted(parts["train"] + parts["val"]) == [f"{i:03d}" for i in range(30)]
        (tmp_path / "a").rename(tmp_path / "b")
        (tmp_path / "b/images/000.jpg").touch()
        assert ids(tmp_path / "b", val=0.1) == parts
        assert "--val 0.1: 3 of 30 images are split val, those whose ids have the least SHA-256" in folder(
            tmp_path / "b", val=0.1
        ).notes[-1]  # fmt: skip
        assert set(parts["val"]) < set(ids(tmp_path / "b", val=0.2)["val"])

    def test_both_parts_have_an_image(self, tmp_path: Path) -> None:
        write_own(tmp_path, count=2, size=(4, 5))
        assert [len(names) for names in ids(tmp_path, val=0.01).values()] == [1, 1]
        assert [len(names) for names in ids(tmp_path, val=0.99).values()] == [1, 1]

    def test_a_folder_that_has_one_already(self, tmp_path: Path) -> None:
        write_own(tmp_path, count=3, size=(4, 5))
        (tmp_path / "train.txt").write_text("000\n001")
        (tmp_path / "dev.txt").write_text("002")
        with pytest.raises(DataError, match="--val: the folder has a split val already"):
            folder(tmp_path, val=0.5)
        (tmp_path / "dev.txt").unlink()
        (tmp_path / "train.txt").write_text("000")
        with pytest.raises(DataError, match=r"--val: split train has 1 image\(s\)"):
            folder(tmp_path, val=0.5)


class TestNames:
    @pytest.mark.parametrize("on_disk", FORMS)
    @pytest.mark.parametrize("in_list", FORMS)
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
    def test_either_normal_form_in_any_encoding(
        self, tmp_path: Path, on_disk: str, in_list: str, encoding: str
    ) -> None:
        write_own(tmp_path, count=2, size=(4, 5))
        move(tmp_path, "000", on_disk)
        (tmp_path / "train.txt").write_bytes(f"{in_list}.jpg\r\n001\r\n".encode(encoding))
        own = folder(tmp_path)
        assert [item.id for item in own.index("train")] == [in_list, "001"]
        assert own.read(own.index("train")[0]).mask.shape == (4, 5)
        (tmp_path / "train.txt").unlink()
        table = f"image,mask\r\nimages/{in_list}.jpg,masks/{in_list}.png\r\n"
        (tmp_path / "pairs.csv").write_bytes(table.encode(encoding))
        assert own.read(folder(tmp_path).index("train")[0]).mask.shape == (4, 5)

    def test_latin_1_in_lists_and_names(self, tmp_path: Path) -> None:
        write_own(tmp_path, count=2, size=(4, 5))
        for kind, end in (("images", ".jpg"), ("masks", ".png")):
            os.rename(tmp_path / kind / f"000{end}", os.fsencode(tmp_path / kind) + b"/caf\xe9" + end.encode())
        (tmp_path / "train.txt").write_bytes("café\r001\r".encode("latin-1"))
        assert ids(tmp_path) == {"train": ["café", "001"]}
        (tmp_path / "train.txt").unlink()
        assert ids(tmp_path) == {"train": ["001", "café"]}

    @pytest.mark.parametrize(
        "name", ["a b", "a,b", "a$_$b", 'it\'s "x"', "汽车", "a;b", "100%", "a#b?c", "a.b.c", "-x"]
    )
    def test_names_of_all_kinds(self, tmp_path: Path, name: str) -> None:
        write_own(tmp_path, count=1, size=(4, 5))
        move(tmp_path, "000", f"{name}/{name}")
        assert ids(tmp_path) == {"train": [f"{name}/{name}"]}
        for line in (
            name,
            f"{name}.jpg",
            f"{name}/{name}",
            f"./images/{name}/{name}.jpg",
            f"images\\{name}\\{name}.jpg",
        ):
            (tmp_path / "train.txt").write_text(line)
            assert folder(tmp_path).index("train")[0].image == str(tmp_path / f"images/{name}/{name}.jpg")
        (tmp_path / "train.txt").unlink()
        quoted = name.replace('"', '""')
        for mark in (",", ";", "\t"):
            row = mark.join(f'"{kind}/{quoted}/{quoted}.{end}"' for kind, end in (("images", "jpg"), ("masks", "png")))
            (tmp_path / "pairs.csv").write_text(f"image{mark}mask\n{row}\n")
            assert folder(tmp_path).index("train")[0].label == str(tmp_path / f"masks/{name}/{name}.png")

    def test_a_stem_that_two_images_have(self, tmp_path: Path) -> None:
        write_own(tmp_path, count=2, size=(4, 5))
        move(tmp_path, "000", "a/x")
        move(tmp_path, "001", "b/x")
        (tmp_path / "train.txt").write_text("x")
        with pytest.raises(DataError, match=r"train\.txt: 'x' may be a/x, b/x; write its path"):
            folder(tmp_path)
        (tmp_path / "train.txt").write_text("b/x\n./b/x.jpg")
        with pytest.raises(DataError, match=r"train\.txt: listed twice: b/x"):
            folder(tmp_path)

    @pytest.mark.parametrize(
        ("table", "match"),
        [
            ("image,mask\na,b.jpg,m.png\n", "row 2 has 3 entries, the first line 2; .* in double quotes"),
            ('image,mask\n"a.jpg,m.png\n', r"pairs\.csv: no table"),
            ("image,mask\n.,m.png\n", "row 2 is .* needed are an image"),
            ("", "the first line is ''"),
        ],
    )
    def test_tables_that_are_none(self, tmp_path: Path, table: str, match: str) -> None:
        write_own(tmp_path, count=1, size=(4, 5))
        (tmp_path / "pairs.csv").write_text(table)
        with pytest.raises(DataError, match=match):
            folder(tmp_path)


class TestClasses:
    def write(self, root: Path, page: str | bytes, *stored: int) -> Path:
        """Write two images, whose masks hold the values in stripes."""
        write_own(root, count=2, size=(4, 6))
        for i in range(2):
            cv2.imwrite(str(root / f"masks/{i:03d}.png"), np.resize(np.array(stored or [0, 1], np.uint8), (4, 6)))
        (root / "classes.yaml").write_bytes(page if isinstance(page, bytes) else page.encode())
        return root

    def masks(self, root: Path) -> set[int]:
        own = folder(root)
        return {int(value) for item in own.index("train") for value in np.unique(own.read(item).mask)}

    @pytest.mark.parametrize(
        ("names", "expected"),
        [
            ("[off, on]", ("off", "on")),
            ("[no, yes]", ("no", "yes")),
            ("[null, ~]", ("null", "~")),
            ("[12, 012]", ("12", "012")),
            ("[1.0, 1e3]", ("1.0", "1e3")),
            ("[2020-01-01, 1:30]", ("2020-01-01", "1:30")),
            ("{0: true, 1: NO}", ("true", "NO")),
            ("['a$_$', \"x, 'y'/z\"]", ("a$_$", "x, 'y'/z")),
            ("[汽车, Straße]", ("汽车", "Straße")),
        ],
    )
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
    def test_names_are_the_text_that_was_written(
        self, tmp_path: Path, names: str, expected: tuple[str, str], encoding: str
    ) -> None:
        assert folder(self.write(tmp_path, f"classes: {names}\r\n".encode(encoding))).classes == expected

    def test_names_of_colours_too(self, tmp_path: Path) -> None:
        page = "colours: {no: [0, 0, 0], 12: [1, 1, 1]}\nclasses: [12, no]\n"
        assert folder(self.write(tmp_path, page)).classes == ("12", "no")

    @pytest.mark.parametrize(
        ("page", "match"),
        [
            ("classes:\n  0: sky\n  1: road\n  1: car\n", r"classes\.yaml: '1' is given twice, in lines 3 and 4"),
            ("classes: [a]\nclasses: [b]\n", "'classes' is given twice, in lines 1 and 2"),
            ("colours: {a: [0, 0, 0], a: [1, 1, 1]}", "'a' is given twice"),
            ("classes: {1: a, 0x1: b}", "a mask value is given twice"),
            ("classes: {010: a}", "mapping of mask values"),
            ("classes: [a, '']", "'' is no name"),
            ("classes: [a, [b]]", r"\['b'\] is no name"),
            ('classes: [a, "b\\nc"]', "is no name; a class's name is text in one line"),
            ('classes: ["\\u00e9", "e\\u0301"]', "a name occurs twice"),
            ("classes: [a, b]\nignore: 255", "ignore is '255'"),
            ("classes: [a, b]\nignore:", "ignore is ''"),
            ("classes: [a", "no YAML"),
        ],
    )
    def test_pages_that_are_refused(self, tmp_path: Path, page: str, match: str) -> None:
        with pytest.raises(DataError, match=match):
            folder(self.write(tmp_path, page))

    def test_255_is_a_class_where_it_is_named(self, tmp_path: Path) -> None:
        root = self.write(tmp_path, "classes: {0: background, 255: lesion}\n", 0, 255)
        assert self.masks(root) == {0, 1}
        assert folder(root).ignored == ""
        (root / "classes.yaml").write_text("classes: {0: background, 255: lesion}\nignore: [255]\n")
        with pytest.raises(DataError, match="value 255 is both a class and ignored"):
            folder(root)

    def test_255_is_ignored_by_default_where_no_class_has_it(self, tmp_path: Path) -> None:
        root = self.write(tmp_path, "classes: [a, b]\n", 0, 1, 255)
        assert self.masks(root) == {0, 1, 255}
        assert folder(root).ignored == "mask value 255, by default because no class has it"
        (root / "classes.yaml").write_text("classes: [a, b]\nignore: [255]\n")
        assert folder(root).ignored == "mask value 255"
        (root / "classes.yaml").write_text("classes: [a, b]\nignore: []\n")
        with pytest.raises(DataError, match="label value 255"):
            self.masks(root)

    def test_two_names_and_masks_of_0_and_255_only(self, tmp_path: Path) -> None:
        root = self.write(tmp_path, "classes: [background, lesion]\n", 0, 255)
        assert self.masks(root) == {0, 1}
        (note,) = folder(root).notes
        assert "255 is read as 'lesion'" in note
        (root / "classes.yaml").write_text("classes: [background, lesion]\nignore: [255]\n")
        assert self.masks(root) == {0, 255}

    @pytest.mark.parametrize("page", ["classes: [a, b, c]", "classes: [a]", "classes: {0: a, 1: b}"])
    def test_other_classes_never_take_255(self, tmp_path: Path, page: str) -> None:
        assert self.masks(self.write(tmp_path, page, 0, 255)) == {0, 255}

    def test_one_mask_with_another_value_decides(self, tmp_path: Path) -> None:
        root = self.write(tmp_path, "classes: [a, b]\n", 0, 255)
        cv2.imwrite(str(root / "masks/001.png"), np.ones((4, 6), np.uint8))
        assert self.masks(root) == {0, 1, 255}
