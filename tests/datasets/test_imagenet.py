"""ImageNet in its published layouts: folders, archives, Kaggle's; the same rows of all; classes of val by each list."""

import io
import shutil
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from miniatures import litter, through_shards, write_image
from scipy.io import savemat

from datasets.catalog import BENCHMARKS, tree_of
from datasets.readers.files import check_folder
from datasets.readers.imagenet import imagenet
from datasets.sample import DataError, Segment
from datasets.shards import verify

WORDS = {
    "n01440764": "tench, Tinca tinca",
    "n02012849": "crane",
    "n03126707": "crane",
    "n09999999": "a class that no image has",
}
NAMES = ("tench", "crane (n02012849)", "crane (n03126707)", "a class that no image has")
SIZES = [(12, 16), (9, 7), (30, 20)]
VAL = ["n03126707", "n01440764", "n03126707"]  # of the images in order
IDS = {"n03126707": 1, "n01440764": 3, "n02012849": 2, "n09999999": 4}  # ILSVRC's own, in another order


def write_lists(root: Path, *names: str) -> Path:
    """The lists of the release."""
    root.mkdir(parents=True, exist_ok=True)
    if "words" in names:
        (root / "synset_words.txt").write_text("".join(f"{wnid} {text}\n" for wnid, text in reversed(WORDS.items())))
    if "solution" in names:
        rows = [f"ILSVRC2012_val_{i:08d},{wnid} 1 2 3 4 {wnid} 5 6 7 8 " for i, wnid in enumerate(VAL, 1)]
        (root / "LOC_val_solution.csv").write_text("\r\n".join(["ImageId,PredictionString", *rows[::-1]]))
    if "devkit" in names:
        data = root / "ILSVRC2012_devkit_t12/data"
        data.mkdir(parents=True)
        kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("num_children", "f8")]
        leaves = [(IDS[wnid], wnid, text, 0) for wnid, text in WORDS.items()]
        savemat(data / "meta.mat", {"synsets": np.array([*leaves, (1001, "n00001740", "entity", 3)], kinds)[:, None]})
        (data / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{IDS[wnid]}\n" for wnid in VAL))
    return root


def write_folders(root: Path, flat: bool = False) -> Path:
    """Three images of each of three classes in train, and three in val."""
    for wnid in list(WORDS)[:3]:
        for i, size in enumerate(SIZES):
            write_image(root / f"train/{wnid}/{wnid}_{i}.JPEG", size)
    for i, wnid in enumerate(VAL, 1):
        write_image(root / "val" / ("" if flat else wnid) / f"ILSVRC2012_val_{i:08d}.JPEG", SIZES[i - 1])
    return root


def pack(path: Path, files: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def write_tars(folders: Path, root: Path) -> Path:
    """The archives as published: one of archives, a flat one, the kit."""
    root.mkdir(parents=True)
    inner = {}
    for wnid in sorted(path.name for path in (folders / "train").iterdir()):
        pack(root / "x.tar", {path.name: path.read_bytes() for path in sorted((folders / "train" / wnid).iterdir())})
        inner[f"{wnid}.tar"] = (root / "x.tar").read_bytes()
    (root / "x.tar").unlink()
    pack(root / "ILSVRC2012_img_train.tar", inner)
    images = sorted((folders / "val").rglob("*.JPEG"))
    pack(root / "ILSVRC2012_img_val.tar", {path.name: path.read_bytes() for path in images})
    kit = write_lists(root, "devkit") / "ILSVRC2012_devkit_t12"
    names = [path for path in kit.rglob("*") if path.is_file()]
    pack(root / f"{kit.name}.tar.gz", {str(path.relative_to(root)): path.read_bytes() for path in names}, "w:gz")
    shutil.rmtree(kit)
    return root


def rows_of(root: Path, split: str) -> list[tuple[str, bytes, tuple[Segment, ...]]]:
    benchmark = imagenet(root)
    samples = map(benchmark.read, benchmark.index(split))
    assert benchmark.classes == NAMES
    return [(sample.id, sample.image, sample.segments) for sample in samples]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return write_folders(write_lists(tmp_path / "folders", "words"))


@pytest.mark.parametrize("split", ["train", "val"])
def test_all_layouts_give_the_same_rows(folders: Path, tmp_path: Path, split: str) -> None:
    wanted = rows_of(folders, split)
    assert [row[0] for row in wanted] == sorted(row[0] for row in wanted)
    assert rows_of(write_tars(folders, tmp_path / "tars"), split) == wanted
    assert rows_of(write_folders(write_lists(tmp_path / "flat", "words", "solution"), flat=True), split) == wanted
    assert rows_of(write_folders(write_lists(tmp_path / "kit", "devkit"), flat=True), split) == wanted
    kaggle = write_lists(tmp_path / "kaggle", "solution")
    (kaggle / "LOC_synset_mapping.txt").write_text((folders / "synset_words.txt").read_text())
    write_folders(kaggle / "ILSVRC/Data/CLS-LOC", flat=True)
    assert rows_of(kaggle, split) == wanted


def test_the_class_is_one_segment_that_is_the_whole_image(folders: Path) -> None:
    for wnid, (key, data, (segment,)) in zip(VAL, rows_of(folders, "val"), strict=True):
        height, width = cv2.imdecode(np.frombuffer(data, np.uint8), 1).shape[:2]
        assert data == (folders / f"val/{wnid}/{key}.JPEG").read_bytes()
        assert (segment.number, segment.crowd, segment.box) == (list(WORDS).index(wnid), False, (0, 0, width, height))


def test_through_shards_and_back(folders: Path, tmp_path: Path) -> None:
    shards = through_shards(imagenet(folders), "train", tmp_path)
    manifest = shards.manifest
    assert (manifest.rows, manifest.official_rows, manifest.labelled, manifest.classified) == (9, 1281167, False, True)
    assert manifest.images == (3, 3, 3, 0, 0)
    assert manifest.unseen == ["a class that no image has"]
    assert [shards.segments(row)[0].number for row in range(9)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert sorted(map(tuple, shards.sizes.tolist())) == sorted(3 * SIZES)
    assert shards.encoded(0)[1] is None
    assert verify(shards.uri) == []


def test_without_a_list_classes_are_the_folders(folders: Path) -> None:
    (folders / "synset_words.txt").unlink()
    assert imagenet(folders).classes == ("n01440764", "n02012849", "n03126707")


def test_junk_of_file_browsers_is_no_class(folders: Path) -> None:
    litter(folders / "train")
    litter(folders / "train/n01440764", "n01440764_0.JPEG")
    assert len(imagenet(folders).index("train")) == 9


def test_an_image_that_is_a_png_by_its_content_is_one(folders: Path) -> None:
    target = folders / "train/n01440764/n01440764_0.JPEG"  # ImageNet has such a file
    target.write_bytes(write_image(folders / "x.png").read_bytes())
    assert rows_of(folders, "train")[0][1].startswith(b"\x89PNG")


def test_a_folder_of_archives_alone_is_a_release(folders: Path, tmp_path: Path) -> None:
    check_folder(write_tars(folders, tmp_path / "tars"))
    (tmp_path / "one").mkdir()
    pack(tmp_path / "one/other.tar", {})
    with pytest.raises(DataError, match="is an archive; unpack it"):
        check_folder(tmp_path / "one")


def test_faults_name_their_cure(folders: Path, tmp_path: Path) -> None:
    flat = write_folders(tmp_path / "flat", flat=True)
    with pytest.raises(DataError, match=r"nothing else says their classes. Add one of the lists"):
        imagenet(flat).index("val")
    write_lists(flat, "solution")
    write_image(flat / "val/ILSVRC2012_val_00000004.JPEG")
    with pytest.raises(
        DataError, match=r"1 images of val are not in the list of their classes: ILSVRC2012_val_00000004"
    ):
        imagenet(flat).index("val")
    (folders / "train/cats").mkdir()
    with pytest.raises(DataError, match="folders that are no class of ImageNet: cats"):
        imagenet(folders).index("train")
    (folders / "train/cats").rename(folders / "train/n00000001")
    write_image(folders / "train/n00000001/n00000001_0.JPEG")
    with pytest.raises(DataError, match=r"1 class\(es\) that are not among the 4 .*: n00000001"):
        imagenet(folders).index("train")
    shutil.rmtree(folders / "val")
    with pytest.raises(DataError, match="missing") as error:
        imagenet(folders).index("val")
    assert error.value.kind == "absent"
    (folders / "synset_words.txt").write_text("tench\n")
    with pytest.raises(DataError, match="the line 'tench' is not of the form"):
        imagenet(folders)


def test_a_damaged_archive_and_a_damaged_image_are_named(folders: Path, tmp_path: Path) -> None:
    tars = write_tars(folders, tmp_path / "tars")
    item = imagenet(tars).index("val")[1]
    data = bytearray((tars / "ILSVRC2012_img_val.tar").read_bytes())
    offset = item.label[1]
    data[offset : offset + item.bytes] = bytes(item.bytes)
    (tars / "ILSVRC2012_img_val.tar").write_bytes(data)
    with pytest.raises(DataError, match=r"ILSVRC2012_img_val.tar, ILSVRC2012_val_00000002: ") as error:
        imagenet(tars).read(item)
    assert error.value.kind == "damaged"
    (tars / "ILSVRC2012_img_train.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(DataError, match=r"ILSVRC2012_img_train.tar: the archive does not read"):
        imagenet(tars).index("train")


def test_it_is_in_the_catalog() -> None:
    assert BENCHMARKS["imagenet"] is imagenet
    assert "ILSVRC2012_img_train.tar" in tree_of("imagenet")
