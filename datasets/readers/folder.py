"""The user's own folder: images, masks and a list of classes."""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from datasets.readers.binary import taken_as_binary
from datasets.readers.classes_yaml import PAGE, read_settings
from datasets.readers.colours import Colour, read_colour_png, remap_colours
from datasets.readers.files import check_folder
from datasets.readers.formats import READ
from datasets.readers.labels import check_items, check_present, check_split, lookup_table, read_pair, read_png_pair
from datasets.readers.own_tree import Kind, Listed, files_in, kind_of, lists_in, path_in
from datasets.readers.pairs_csv import PAIRS, read_rows
from datasets.sample import Benchmark, DataError, Item, Sample
from datasets.text import lines_of, named, read_text, same_form, shown

MASKS = (*READ, ".gif")
"""Suffixes of masks; what is inside must be lossless, see `labels.opened_mask`."""
TREE = """\
DIR/
  classes.yaml                         classes: [road, car]  or  classes: {0: road, 7: car}  (mask value: name)
                                       palette: [[128, 64, 128], [0, 0, 142]]   optional, colours to show them in
                                       ignore: [255]                            optional, mask values
                                       or, for RGB masks (classes may then be left out):
                                       colours: {road: [128, 64, 128], car: [[0, 0, 142], [0, 0, 70]]}
                                       ignore: [[0, 0, 0]]                      optional, colours
  images/STEM.jpg                      JPEG, PNG, TIFF, BMP or WebP, also in subfolders
  masks/STEM.png                       at the same place below masks/: grey (up to 16 bits, values 0-255) or palette
                                       PNG: the stored value is the class; with `colours`, RGB PNG: the colour is
                                       the class; TIFF, BMP and GIF do too, JPEG never
  train.txt  val.txt  test.txt         optional: one stem, name or path below images/ per line
                                       without lists: images/train + masks/train, images/val + masks/val, ...;
                                       valid, validation and dev mean val
                                       without either, all images are split train; --val 0.1 makes a split val
  pairs.csv                            instead of images/, masks/ and lists: image,mask or image,mask,split on the
                                       first line, then paths relative to DIR; an empty mask: no label"""


@dataclass
class Plan:
    """What of a folder is used as what.

    Args:
        rows: split -> its rows.
        used: the files that are read, as paths in the folder.
        left: images without a mask and masks without an image, where they are left out.
        notes: what else a person should know.
    """

    rows: dict[str, list[Item]] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    left: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def folder(source: Path, val: float = 0.0, unpaired: bool = False) -> Benchmark:
    """The user's own images and masks; a split whose folder of masks does not exist has no labels.

    Args:
        source: the folder that `TREE` draws.
        val: the share of the images that become split val, where the folder itself has none.
        unpaired: whether images without a mask and masks without an image are left out, not refused.

    Raises:
        DataError: `classes.yaml`, `pairs.csv` or a list is missing or wrong, or images and masks do not pair.
    """
    source = Path(source).absolute()
    if source.exists():
        check_folder(source)
    settings = read_settings(source / PAGE, TREE)
    found = plan(source, val, unpaired)
    labels = [str(item.label) for rows in found.rows.values() for item in rows if item.label is not None]
    if settings.may_be_binary and taken_as_binary(labels):
        settings = settings.as_binary()
    read = (
        partial(read_colours, classes=settings.colours)
        if settings.colours
        else partial(read_png_pair, table=lookup_table(settings.values))
    )
    splits: dict[str, int | None] = dict.fromkeys(found.rows)
    index = partial(index_folder, source, val=val, unpaired=unpaired)
    notes = (*settings.notes, *found.notes)
    return Benchmark("folder", settings.names, settings.palette, splits, TREE, index, read, home="",
                     ignored=settings.ignored, notes=notes)  # fmt: skip


def index_folder(source: Path, split: str, val: float = 0.0, unpaired: bool = False) -> list[Item]:
    """The split's images, in the list's order or by their ids.

    Args:
        source: the folder, absolute.
        split: of `folder`.
        val: as in `folder`.
        unpaired: as in `folder`.

    Raises:
        DataError: an unknown split, missing files, or two images with one stem.
    """
    rows = plan(source, val, unpaired).rows
    check_split(split, rows, "folder")
    return rows[split]


def plan(source: Path, val: float = 0.0, unpaired: bool = False) -> Plan:
    """What of the folder is used as what; see `folder`."""
    files = files_in(source)
    found = Plan(used={PAGE})
    if PAIRS in files:
        _of_pairs(source, files, found, unpaired)
    else:
        _of_folders(source, files, found, unpaired)
    for split, rows in found.rows.items():
        check_items(rows, TREE)
        if not rows:
            raise DataError(f"{source}: no image of split {split} ({', '.join(READ)}). Expected is:\n{TREE}")
    if val:
        split_off(found, val)
    found.used |= {os.path.relpath(p, source) for rows in found.rows.values() for i in rows for p in _paths(i)}
    if found.left:
        found.notes.append(f"left out (images without a mask, masks without an image): {_counted(found.left)}")
    if unused := [path for path in files if path not in found.used and path not in found.left]:
        found.notes.append(f"not used (in no list, or of a kind that is not read): {_counted(unused)}")
    return found


def _counted(paths: list[str]) -> str:
    return f"{len(paths):,} file{'s' if len(paths) != 1 else ''}: {named(paths)}"


def _paths(item: Item) -> list[str]:
    return [item.image, *([item.label] if isinstance(item.label, str) else [])]


def read_colours(item: Item, classes: Mapping[Colour, int]) -> Sample:
    """Read an item whose label is the path of a PNG of colours.

    Raises:
        DataError: a damaged file, a colour outside the table, or two sizes.
    """
    path = str(item.label)
    return read_pair(item, lambda: remap_colours(read_colour_png(path), classes, path))


def _of_folders(source: Path, files: list[str], found: Plan, unpaired: bool) -> None:
    """The rows of `images/` and `masks/`."""
    check_present([source / "images"], TREE)
    images, masks = kind_of(source, files, "images", READ), kind_of(source, files, "masks", MASKS)
    lists = lists_in(source)
    found.used |= {path.name for path in lists.values()}
    chosen = _listed(source, images, lists) if lists else _by_folder(images)
    bare: list[str] = []
    for split, keys in chosen.items():
        labelled = split in masks.folders if images.folders and not lists else (source / "masks").is_dir()
        found.rows[split] = []
        for name, key in keys.items():
            mask = masks.at.get(key)
            if labelled and mask is None:
                bare.append(images.at[key])
                continue
            label = str(source / mask) if labelled and mask else None
            found.rows[split].append(Item(name, str(source / images.at[key]), label))
    lonely = [path for key, path in masks.at.items() if key not in images.at]
    _check_pairs(source, bare, lonely, [*images.others, *masks.others], unpaired)
    found.left += [*bare, *lonely]


def _by_folder(images: Kind) -> dict[str, dict[str, tuple[str, str]]]:
    """The images of each split by their ids; all are train where no folder names a split."""
    rows: dict[str, dict[str, tuple[str, str]]] = {split: {} for split in images.folders or ["train"]}
    for key in images.at:
        split = key[0] or ("" if images.folders else "train")
        if split:
            rows[split][_id(images, key)] = key
    return {split: dict(sorted(keys.items())) for split, keys in rows.items()}


def _id(images: Kind, key: tuple[str, str]) -> str:
    """An image's place below its split's folder, without suffix, as on the disk."""
    inside = images.at[key].removeprefix("images/")
    return shown(os.path.splitext(inside.split("/", 1)[1] if key[0] else inside)[0])


def _listed(source: Path, images: Kind, lists: Mapping[str, Path]) -> dict[str, dict[str, tuple[str, str]]]:
    """The images of each list by their ids, in the list's order."""
    finder, rows = Listed(images, MASKS), {}
    for split, path in lists.items():
        lines = lines_of(read_text(path))
        if not lines:
            raise DataError(f"{path}: the list is empty; expected is one id per line")
        found = [finder.find(line, path) for line in lines]
        check_present([source / "images" / f"{name}.jpg" for name, key in found if key is None], TREE)
        rows[split] = {name: key for name, key in found if key is not None}
        if len(set(rows[split].values())) < len(found):
            counts = Counter(key for _, key in found)
            twice = dict.fromkeys(name for name, key in found if counts[key] > 1)
            raise DataError(f"{path}: listed twice: {named(twice)}; keep one line of each")
    return rows


def _check_pairs(source: Path, bare: list[str], lonely: list[str], others: list[str], unpaired: bool) -> None:
    """Refuse images without a mask, and masks without an image, unless they are to be left out."""
    if unpaired or not (bare or lonely):
        return
    told = [f"images without a mask: {_counted(bare)}"] if bare else []
    told += [f"masks without an image: {_counted(lonely)}"] if lonely else []
    told += [f"not read, of other kinds: {_counted(others)}"] if others else []
    lines = "\n  ".join(told)
    raise DataError(
        f"{source}: images and masks do not pair.\n  {lines}\nThe mask of images/A/STEM.jpg is masks/A/STEM.png. Add "
        f"or remove files, name the pairs in {PAIRS}, or leave these files out with --allow-unpaired"
    )


def _of_pairs(source: Path, files: list[str], found: Plan, unpaired: bool) -> None:
    """The rows of `pairs.csv`; an id is the image's path without its suffix."""
    if lists := lists_in(source):
        first = next(iter(lists.values())).name
        raise DataError(f"{source}: {PAIRS} and {first} both name rows; remove one of them")
    found.used.add(PAIRS)
    by_form = {same_form(path): path for path in files}
    for row in read_rows(source / PAIRS):
        key = str(PurePosixPath(row.image.replace("\\", "/")).with_suffix(""))
        image, mask = path_in(source, row.image, by_form), path_in(source, row.mask, by_form) if row.mask else None
        found.rows.setdefault(row.split, []).append(Item(key, str(image), str(mask) if mask else None))
    found.rows = {split: found.rows[split] for split in ("train", "val", "test") if split in found.rows}
    for split, rows in found.rows.items():
        if twice := [repr(key) for key, count in Counter(item.id for item in rows).items() if count > 1]:
            raise DataError(f"{source / PAIRS}: {named(twice)} is listed twice in {split}; keep one row of each")
        bare = [item for item in rows if item.label is None]
        if not bare or len(bare) == len(rows):
            continue
        if not unpaired:
            raise DataError(f"{source / PAIRS}: {named(item.id for item in bare)} has no mask, other rows of {split} "
                            "have one; label all or none, or leave such rows out with --allow-unpaired")  # fmt: skip
        found.rows[split] = [item for item in rows if item.label is not None]
        found.left += [os.path.relpath(item.image, source) for item in bare]


def split_off(found: Plan, share: float) -> None:
    """Move images of train to a new split val: those whose ids have the least hashes.

    The choice depends only on the ids, not on their order or on the machine. When a few images are added or removed,
    nearly all others stay in their split.

    Raises:
        DataError: the folder has a split val, or too few images.
    """
    train = found.rows.get("train", [])
    if "val" in found.rows:
        raise DataError("--val: the folder has a split val already; leave the option out, or remove that split")
    if len(train) < 2:
        raise DataError(f"--val: split train has {len(train)} image(s); two are needed")
    count = min(max(1, round(share * len(train))), len(train) - 1)
    chosen = {item.id for item in sorted(train, key=_hash)[:count]}
    parts = {"train": [i for i in train if i.id not in chosen], "val": [i for i in train if i.id in chosen]}
    found.rows = parts | {split: rows for split, rows in found.rows.items() if split != "train"}
    found.notes.append(f"--val {share:g}: {count} of {len(train)} images are split val, those whose ids have the least "
                       "SHA-256; the same ids give the same split each time")  # fmt: skip


def _hash(item: Item) -> str:
    return hashlib.sha256(same_form(item.id).encode()).hexdigest()
