"""A folder of one's own: images, masks and a list of classes."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from datasets.readers.classes_yaml import read_settings
from datasets.readers.colours import Colour, read_colour_png, remap_colours
from datasets.readers.files import IMAGES, check_folder, images_in
from datasets.readers.labels import (
    check_items,
    check_present,
    check_split,
    lookup_table,
    read_list,
    read_pair,
    read_png_pair,
)
from datasets.sample import Benchmark, DataError, Item, Sample

SPLITS = ("train", "val", "test")
PAIRS = "pairs.csv"
COLUMNS = ("image", "mask", "split")
TREE = """\
DIR/
  classes.yaml                         classes: [road, car]  or  classes: {0: road, 7: car}  (mask value: name)
                                       palette: [[128, 64, 128], [0, 0, 142]]   optional, colours to show them in
                                       ignore: [255]                            optional, mask values
                                       or, for RGB masks (classes may then be left out):
                                       colours: {road: [128, 64, 128], car: [[0, 0, 142], [0, 0, 70]]}
                                       ignore: [[0, 0, 0]]                      optional, colours
  images/STEM.jpg                      or .jpeg or .png
  masks/STEM.png                       grey (up to 16 bits, values 0-255) or palette PNG: the stored value is the
                                       class; with `colours`, RGB PNG: the colour is the class
  train.txt  val.txt  test.txt         optional: one stem per line
                                       without lists: images/train + masks/train, images/val + masks/val, ...;
                                       without either, all images are split train
  pairs.csv                            instead of images/, masks/ and lists: image,mask or image,mask,split on the
                                       first line, then paths relative to DIR; an empty mask: no label"""


@dataclass(frozen=True)
class Row:
    """One row of `pairs.csv`.

    Args:
        image: path of the image in the folder.
        mask: path of the mask in the folder; "" for no label.
        split: train, val or test.
    """

    image: str
    mask: str
    split: str


def folder(source: Path) -> Benchmark:
    """One's own images and masks; a split whose folder of masks does not exist has no labels.

    Raises:
        DataError: `classes.yaml` is missing or wrong, or `pairs.csv` is wrong.
    """
    source = Path(source).absolute()
    if source.exists():
        check_folder(source)
    settings = read_settings(source / "classes.yaml", TREE)
    read = (
        partial(read_colours, classes=settings.colours)
        if settings.colours
        else partial(read_png_pair, table=lookup_table(settings.values))
    )
    splits: dict[str, int | None] = dict.fromkeys(_splits(source))
    index = partial(index_folder, source)
    return Benchmark("folder", settings.names, settings.palette, splits, TREE, index, read, home="")


def index_folder(source: Path, split: str) -> list[Item]:
    """The split's images, in the list's order or by stem.

    Raises:
        DataError: an unknown split, missing files, or two images with one stem.
    """
    check_split(split, _splits(source), "folder")
    if (source / PAIRS).is_file():
        return _paired(source, split)
    nested = (source / "images" / split).is_dir() and not _listed(source)
    images, masks = (source / kind / split if nested else source / kind for kind in ("images", "masks"))
    check_present([images], TREE)
    by_stem = _by_stem(images)
    stems = read_list(source / f"{split}.txt", _stem, TREE) if _listed(source) else sorted(by_stem)
    check_present([images / f"{stem}.jpg" for stem in stems if stem not in by_stem], TREE)
    items = [Item(s, str(by_stem[s]), str(masks / f"{s}.png") if masks.is_dir() else None) for s in stems]
    if not items:
        raise DataError(f"{images}: no image in it ({', '.join(IMAGES)}). Expected is this folder:\n{TREE}")
    check_items(items, TREE)
    return items


def read_colours(item: Item, classes: Mapping[Colour, int]) -> Sample:
    """Read an item whose label is the path of a PNG of colours.

    Raises:
        DataError: a damaged file, a colour outside the table, or two sizes.
    """
    path = str(item.label)
    return read_pair(item, lambda: remap_colours(read_colour_png(path), classes, path))


def _paired(source: Path, split: str) -> list[Item]:
    """The rows of `pairs.csv`; an id is the image's path without its suffix."""
    items = []
    for row in _rows(source):
        if row.split == split:
            key = str(PurePosixPath(row.image).with_suffix(""))
            items.append(Item(key, str(source / row.image), str(source / row.mask) if row.mask else None))
    check_items(items, TREE)
    if bare := [item.id for item in items if item.label is None and len({i.label is None for i in items}) > 1]:
        raise DataError(f"{source / PAIRS}: {bare[0]} has no mask, other rows of {split} have one; label all or none")
    if len({item.id for item in items}) < len(items):
        twice = next(item.id for item in items if [i.id for i in items].count(item.id) > 1)
        raise DataError(f"{source / PAIRS}: {twice!r} is listed twice in {split}; remove one of the rows")
    return items


def _rows(source: Path) -> list[Row]:
    path = source / PAIRS
    with path.open(newline="", encoding="utf-8-sig") as stream:
        table = csv.DictReader(stream)
        names = [name.strip() for name in table.fieldnames or ()]
        if names not in (list(COLUMNS), list(COLUMNS[:2])):
            raise DataError(
                f"{path}: the first line is {','.join(names)!r}; expected is image,mask or image,mask,split"
            )
        table.fieldnames = names
        rows = [{"split": "train"} | {key: (row[key] or "").strip() for key in names} for row in table]
    for number, row in enumerate(rows, 2):
        if not row["image"] or row["split"] not in SPLITS:
            raise DataError(f"{path}: row {number} is {row}; needed are an image and a split of {', '.join(SPLITS)}")
    if not rows:
        raise DataError(f"{path}: no row below the first line; expected is a row per image")
    slashed = str.maketrans("\\", "/")
    return [Row(row["image"].translate(slashed), row["mask"].translate(slashed), row["split"]) for row in rows]


def _listed(source: Path) -> list[str]:
    return [split for split in SPLITS if (source / f"{split}.txt").is_file()]


def _splits(source: Path) -> list[str]:
    if (source / PAIRS).is_file():
        if lists := _listed(source):
            raise DataError(f"{source}: {PAIRS} and {lists[0]}.txt both name rows; remove one of them")
        found = {row.split for row in _rows(source)}
        return [split for split in SPLITS if split in found]
    nested = [split for split in SPLITS if (source / "images" / split).is_dir()]
    return _listed(source) or nested or ["train"]


def _stem(line: str) -> str:
    """The stem on a line, which may have an image's suffix; a stem may hold blanks and dots."""
    return Path(line).stem if Path(line).suffix.lower() in IMAGES else line


def _by_stem(images: Path) -> dict[str, Path]:
    by_stem: dict[str, Path] = {}
    for path in images_in(images):
        if path.stem in by_stem:
            raise DataError(f"{path} and {by_stem[path.stem].name} share one stem and so one mask; rename one")
        by_stem[path.stem] = path
    return by_stem
