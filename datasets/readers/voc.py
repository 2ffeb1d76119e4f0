"""PASCAL VOC 2012 segmentation (Everingham et al., IJCV 2010), and its SBD extension (Hariharan et al., ICCV 2011)."""

import re
from functools import partial
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from datasets.readers.files import check_folder, instead, names_in, naming_file
from datasets.readers.labels import (
    absent_unless,
    check_items,
    check_split,
    colour_map,
    lookup_table,
    read_index_png,
    read_list,
    read_pair,
    remap,
)
from datasets.readers.tables import MAT_ERRORS
from datasets.sample import IGNORE, Benchmark, DataError, Item, Sample

YEAR = "2012"
SPLITS: dict[str, int | None] = {"train": 1464, "val": 1449, "trainval": 2913, "test": 1456}
CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
PALETTE = colour_map(len(CLASSES))
HOME = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
SBD_HOME = "http://home.bharathh.info/pubs/codes/SBD/download.html"
TABLE = lookup_table({**{k: k for k in range(len(CLASSES))}, IGNORE: IGNORE})

VOC_TREE = """\
DIR/                                   DIR may also be VOCdevkit or VOC2012 itself
  VOCdevkit/VOC2012/
    ImageSets/Segmentation/
      train.txt                        1464 ids
      val.txt                          1449 ids
      trainval.txt                     2913 ids
      test.txt                         1456 ids; in the test release, unpacked over the other
    JPEGImages/ID.jpg                  17125 images, and 16135 in the test release
    SegmentationClass/ID.png           2913 palette PNGs; none for test"""

AUG_TREE = """\
DIR/                                   DIR may also be VOCdevkit or VOC2012 itself
  VOCdevkit/VOC2012/                   as for voc12, and either
    ImageSets/Segmentation/
      trainaug.txt                     10582 ids (train_aug.txt will do)
    SegmentationClassAug/ID.png        12031 PNGs
  benchmark_RELEASE/dataset/           or the SBD release, in DIR or next to it
    train.txt  val.txt                 8498 and 2857 ids
    img/ID.jpg                         11355 images
    cls/ID.mat                         11355 masks"""


def voc12(source: Path) -> Benchmark:
    """VOC 2012: train 1464, val 1449, trainval 2913, test 1456 images; 21 classes with background; 255 on borders.

    Split test has no labels: its masks stay with VOC's server.
    """
    index = partial(index_voc, Path(source))
    return Benchmark("voc12", CLASSES, PALETTE, dict(SPLITS), VOC_TREE, index, read_voc, HOME)


def voc12_aug(source: Path) -> Benchmark:
    """VOC 2012 train with SBD's labels: 10,582 images, none of them in VOC val.

    Where `SegmentationClassAug` and its list are present, the reader takes them as they are. Else the rows are
    (VOC train ∪ SBD train ∪ SBD val) − VOC val, in order of their ids. Rows of VOC train keep VOC's own
    `SegmentationClass` mask where it exists; all other masks come from SBD and have no border of 255.
    """
    splits: dict[str, int | None] = {"train": 10582}
    return Benchmark(
        "voc12_aug", CLASSES, PALETTE, splits, AUG_TREE, partial(index_aug, Path(source)), read_voc, SBD_HOME
    )


def index_voc(source: Path, split: str) -> list[Item]:
    """The rows of a VOC list, in the list's order; rows of test have no label.

    Raises:
        DataError: an unknown split, another year's release, or missing files.
    """
    check_split(split, SPLITS, "voc12")
    root = voc_root(source, VOC_TREE)
    lists = {name: root / "ImageSets/Segmentation" / f"{name}.txt" for name in SPLITS}
    with absent_unless(*(path for name, path in lists.items() if (name == "test") == (split == "test"))):
        stems = read_list(lists[split], _stem, VOC_TREE)  # the other three come together
    if split != "test":
        return _pairs(root, "SegmentationClass", stems, VOC_TREE)
    items = [Item(stem, str(root / "JPEGImages" / f"{stem}.jpg"), None) for stem in stems]
    check_items(items, VOC_TREE)
    return items


def index_aug(source: Path, split: str) -> list[Item]:
    """The rows of the augmented training set.

    Raises:
        DataError: an unknown split or missing files.
    """
    check_split(split, ("train",), "voc12_aug")
    root = voc_root(source, AUG_TREE)
    for name in ("trainaug.txt", "train_aug.txt"):
        if (path := root / "ImageSets/Segmentation" / name).is_file() and (root / "SegmentationClassAug").is_dir():
            return _pairs(root, "SegmentationClassAug", read_list(path, _stem, AUG_TREE), AUG_TREE)
    return _from_sbd(root, sbd_root(source, root))


def _pairs(root: Path, masks: str, stems: list[str], tree: str) -> list[Item]:
    items = [Item(s, str(root / "JPEGImages" / f"{s}.jpg"), str(root / masks / f"{s}.png")) for s in stems]
    check_items(items, tree)
    return items


def _from_sbd(root: Path, sbd: Path) -> list[Item]:
    """(VOC train ∪ SBD train ∪ SBD val) − VOC val."""
    lists = root / "ImageSets/Segmentation"
    train, val = (set(read_list(lists / f"{s}.txt", _stem, AUG_TREE)) for s in ("train", "val"))
    extra = {stem for s in ("train", "val") for stem in read_list(sbd / f"{s}.txt", _stem, AUG_TREE)}
    items = []
    for stem in sorted((train | extra) - val):
        own = root / "SegmentationClass" / f"{stem}.png"
        if stem in train and (own.is_file() or stem not in extra):
            items.append(Item(stem, str(root / "JPEGImages" / f"{stem}.jpg"), str(own)))
        else:
            items.append(Item(stem, str(sbd / "img" / f"{stem}.jpg"), str(sbd / "cls" / f"{stem}.mat")))
    check_items(items, AUG_TREE)
    return items


def read_voc(item: Item) -> Sample:
    """Read an image and its palette PNG or SBD .mat; the index in the palette is the class.

    Raises:
        DataError: a damaged file, a value other than 0-20 and 255, or two sizes.
    """
    path = str(item.label)
    stored = read_sbd_mask if path.endswith(".mat") else read_index_png
    return read_pair(item, lambda: remap(stored(path), TABLE, path))


def read_sbd_mask(path: str) -> np.ndarray:
    """The field GTcls.Segmentation of an SBD file, uint8 (H, W).

    Raises:
        DataError: the file is damaged or lacks the field.
    """
    with naming_file(path, "no SBD mask, GTcls.Segmentation does not read", MAT_ERRORS):
        return np.asarray(loadmat(path)["GTcls"]["Segmentation"][0, 0]).astype(np.uint8)


def voc_root(source: Path, tree: str) -> Path:
    """The folder VOC2012: in the source, or the source itself.

    Raises:
        DataError: there is none, or it is another year's.
    """
    check_folder(source)
    candidates = [source / "VOCdevkit/VOC2012", source / "VOC2012", source]
    for path in candidates:
        if (path / "ImageSets/Segmentation").is_dir():
            if (year := _year(path)) not in ("", YEAR):
                raise DataError(f"{path}: the release of VOC {year}; needed is that of VOC {YEAR} ({HOME})")
            return path.absolute()
    others = [name for folder in (source, source / "VOCdevkit") if folder.is_dir() for name in names_in(folder)]
    years = [f"VOC {name[3:]}" for name in others if re.fullmatch(r"VOC\d{4}", name)]
    found = f"It holds {', '.join(years)}. " if years else ""
    cures = [f"{cure}. " for path in candidates if (cure := instead(path / "ImageSets/Segmentation"))]
    found += "".join(cures[:1])
    raise DataError(f"{source}: no VOC2012/ImageSets/Segmentation in it. {found}Expected is this folder:\n{tree}")


def _year(root: Path) -> str:
    """The release's year: from the folder's name, else from its first annotation; "" where neither tells."""
    if named := re.fullmatch(r"VOC(\d{4})", root.absolute().name):
        return named[1]
    notes = root / "Annotations"
    first = [name for name in names_in(notes) if name.endswith(".xml")][:1] if notes.is_dir() else []
    text = (notes / first[0]).read_text(errors="replace") if first else ""
    noted = re.search(r"<folder>VOC(\d{4})</folder>", text)
    return noted[1] if noted else ""


def sbd_root(source: Path, root: Path) -> Path:
    """The folder benchmark_RELEASE/dataset in the source or next to it.

    Raises:
        DataError: there is none.
    """
    source = source.absolute()
    for folder in (source, source.parent, root, root.parent, root.parent.parent):
        if (path := folder / "benchmark_RELEASE/dataset").is_dir():
            return path
    raise DataError(
        f"{source}: neither SegmentationClassAug with trainaug.txt, nor benchmark_RELEASE/dataset. "
        f"Expected is this folder:\n{AUG_TREE}"
    )


def _stem(line: str) -> str:
    """The id of a line; lists in circulation also hold pairs of paths, the image's and the mask's."""
    return Path(line.split()[-1]).stem
