"""VOC's layout as tools write it: SegmentationClass beside JPEGImages and Annotations/*.xml."""

import os
import xml.etree.ElementTree as ET
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from datasets.exports.colour_table import LABELMAP, classes_of_colours, mask_of_colours, read_table
from datasets.exports.finding import Finder, check_agrees, id_of, images_of, stored_size
from datasets.exports.masked import MaskOf, counted, numbered, read_masked
from datasets.exports.names import form_of
from datasets.exports.pairing import bare_item, by_split, check_pairs, keeps
from datasets.exports.records import Colour, Export, Told
from datasets.readers.classes_yaml import PAGE, read_settings
from datasets.readers.labels import colour_map, lookup_table, read_index_png, remap
from datasets.readers.own_tree import SPLIT_OF, SPLITS
from datasets.readers.voc import CLASSES
from datasets.sample import DAMAGED, IGNORE, DataError, Item
from datasets.text import lines_of, named, read_text, same_form

MASKS = ("SegmentationClassPNG", "SegmentationClass")
"""labelme2voc writes arrays into the second, and PNGs into the first."""
CLASS_NAMES = "class_names.txt"
LISTS = "ImageSets/Segmentation"
TREE = """\
DIR/                                   Pascal VOC (DIR/ or a folder in it such as VOC2012/)
  JPEGImages/NAME.jpg
  SegmentationClass/NAME.png           palette PNGs (the value is the class, 255 the border), or RGB with labelmap.txt;
                                       labelme2voc's SegmentationClassPNG too
  Annotations/NAME.xml                 optional: its size is compared, its objects are counted; boxes are not drawn
  ImageSets/Segmentation/train.txt     optional, and val.txt, test.txt: one NAME per line
  labelmap.txt                         CVAT: name:R,G,B:: per line
  class_names.txt                      labelme2voc: __ignore__, _background_, then a class per line
  classes.yaml                         classes: {0: background, 1: road}; without any of the three: VOC's 21 classes"""


def fits(source: Path, files: list[str]) -> str:
    """Why a folder is in VOC's layout; "" where it is not."""
    found = next((path for path in files for name in MASKS if f"/{name}/" in f"/{path}"), "")
    return f"{found} is in VOC's layout" if found else ""


def read(source: Path, files: list[str], told: Told) -> Export:
    """Read a folder of VOC's layout; see `Format`."""
    base, folder = _base(source, files)
    inside = [path.removeprefix(base) for path in files if path.startswith(base)]
    masks = {
        _stem(path, folder): path for path in inside if path.startswith(f"{folder}/") and path.lower().endswith(".png")
    }
    if not masks:
        raise DataError(f"{source}: no PNG in {base}{folder}. Expected is:\n{TREE}")
    names, palette, mask_of, unlabelled, ignored = _classes(source, base, inside, files, told)
    images = {_stem(path, "JPEGImages"): path for path in images_of(inside) if path.startswith("JPEGImages/")}
    if not images:
        raise DataError(
            f"{source}: no image in {base}JPEGImages: export with images, or put them there. Expected is:\n{TREE}"
        )
    notes, chosen = _chosen(source, base, inside, images, masks)
    bare = [images[stem] for stem, split in chosen.items() if stem in images and stem not in masks and split != "test"]
    lost = [masks.get(stem, stem) for stem in chosen if stem not in images]
    check_pairs(source, bare, lost, told, notes)
    rows: dict[str, list[Item]] = {}
    for stem, split in chosen.items():
        if stem not in images:
            continue
        image, mask = images[stem], masks.get(stem)
        if mask is None and split != "test":
            if keeps(told):
                rows.setdefault(split, []).append(bare_item(source, base + image, unlabelled))
            continue
        label = str(source / base / mask) if mask else None
        rows.setdefault(split, []).append(Item(id_of(image), str(source / base / image), label))
    if "test" in rows and any(item.label is None for item in rows["test"]):
        rows["test"] = [Item(item.id, item.image, None) for item in rows["test"]]
    done = by_split(source, rows, TREE)
    notes += _xml(source, base, inside, done, names)
    used = {os.path.relpath(path, source) for items in done.values() for i in items
            for path in (i.image, i.label) if isinstance(path, str)}  # fmt: skip
    used |= {base + path for path in inside if path.startswith(("Annotations/", LISTS))}
    used |= {base + name for name in (LABELMAP, CLASS_NAMES, PAGE)} | {PAGE, LABELMAP, CLASS_NAMES}
    tallies = counted(source, done, names, mask_of)
    return Export(names, palette, done, partial(read_masked, mask_of=mask_of), tallies, ignored, tuple(notes), used)


def _base(source: Path, files: list[str]) -> tuple[str, str]:
    """The folder that holds the masks' folder, "" or with a slash at its end, and the masks' folder."""
    for name in MASKS:
        bases = sorted({f"/{path}".partition(f"/{name}/")[0].lstrip("/") for path in files
                        if f"/{name}/" in f"/{path}" and path.lower().endswith(".png")})  # fmt: skip
        if len(bases) > 1:
            raise DataError(f"{source}: {len(bases)} folders {name}: in {named(bases)}; name one as --source")
        if bases:
            return f"{bases[0]}/" if bases[0] else "", name
    boxes = any("Annotations/" in path for path in files)
    cure = ". Annotations/*.xml hold boxes: a box says not which pixels. Export segmentation masks" if boxes else ""
    raise DataError(f"{source}: no PNG in SegmentationClass{cure}. Expected is:\n{TREE}")


def _stem(path: str, folder: str) -> str:
    return same_form(os.path.splitext(path.removeprefix(f"{folder}/"))[0])


def _classes(
    source: Path, base: str, inside: list[str], files: list[str], told: Told
) -> tuple[tuple[str, ...], tuple[Colour, ...], MaskOf, int, str]:
    """Names, palette, what reads a mask, the class of an image without one, and what is ignored."""
    ground = "the background, as told, and borders (255)" if told.unlabelled == "ignore" else "borders (mask value 255)"
    if table := _place(LABELMAP, base, inside, files):
        names, palette, colours = classes_of_colours(read_table(source / table), told)
        read_mask: MaskOf = partial(mask_of_colours, numbers=colours)
        return names, palette, read_mask, 0 if told.unlabelled == "background" else IGNORE, ground
    if page := _place(PAGE, base, inside, files):
        settings = read_settings(source / page, TREE)
        of_values = partial(mask_of_values, table=lookup_table(settings.values))
        of: MaskOf = partial(mask_of_colours, numbers=settings.colours) if settings.colours else of_values
        return settings.names, settings.palette, of, 0, settings.ignored
    values = dict(enumerate(CLASSES))
    if listed := _place(CLASS_NAMES, base, inside, files):
        lines = lines_of(read_text(source / listed))
        first = -1 if lines and lines[0] == "__ignore__" else 0
        values = {value: name for value, name in enumerate(lines, first) if value >= 0}
    numbers = numbered(values, told)
    usual = colour_map(256)
    palette = tuple(usual[place] if place >= 0 else (0, 0, 0) for place in numbers.kept)
    table_of = lookup_table(numbers.of | {IGNORE: IGNORE})
    return numbers.classes, palette, partial(mask_of_values, table=table_of), numbers.unlabelled, ground


def _place(name: str, base: str, inside: list[str], files: list[str]) -> str:
    """Where a table of classes is: beside the masks' folder, else at the top; "" where it is not."""
    return base + name if name in inside else name if name in files else ""


def mask_of_values(item: Item, table: np.ndarray) -> np.ndarray:
    """The mask of an item whose label is the path of an index PNG.

    Raises:
        DataError: a damaged file, or a value without a class.
    """
    path = str(item.label)
    return remap(read_index_png(path), table, path)


def _chosen(
    source: Path, base: str, inside: list[str], images: dict[str, str], masks: dict[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Notes, and the stems that are rows -> their split: those in lists, else all with a mask."""
    lists = {os.path.basename(path)[:-4].lower(): path for path in inside
             if path.startswith(f"{LISTS}/") and path.endswith(".txt")}  # fmt: skip
    named_lists = {SPLIT_OF[name]: path for name, path in lists.items() if name in SPLIT_OF}
    if not named_lists:
        return [], dict.fromkeys(sorted({*masks, *images}), "")
    chosen: dict[str, str] = {}
    for split in [split for split in SPLITS if split in named_lists]:
        finder = Finder(list(images.values()))
        for line in lines_of(read_text(source / base / named_lists[split])):
            stem = same_form(
                os.path.splitext(line.replace("\\", "/"))[0] if line.lower().endswith((".jpg", ".png")) else line
            )
            stem = stem.rpartition("JPEGImages/")[2]
            if stem not in images and stem not in masks and finder.find(f"{stem}.jpg", "") not in images.values():
                raise DataError(f"{base}{named_lists[split]}: {line!r} has neither image nor mask; add them, or remove "
                                "its line")  # fmt: skip
            if chosen.setdefault(stem, split) != split:
                raise DataError(f"{base}{LISTS}: {stem} is in both {chosen[stem]} and {split}; remove one of the lines")
    left = [path for stem, path in masks.items() if stem not in chosen]
    note = [f"not used, in no list: {len(left):,} mask(s): {named(left)}"] if left else []
    return note, chosen


def _xml(
    source: Path, base: str, inside: list[str], rows: dict[str, list[Item]], classes: tuple[str, ...]
) -> list[str]:
    """Compare the sizes that Annotations/*.xml state with the images, and say what they list.

    Raises:
        DataError: a file is no XML, or states another size.
    """
    pages = {
        _stem(path, "Annotations"): path for path in inside if path.startswith("Annotations/") and path.endswith(".xml")
    }
    objects: Counter[str] = Counter()
    for items in rows.values():
        for item in items:
            if path := pages.get(same_form(item.id)):
                objects.update(_page(source, base + path, item))
    if not objects:
        return []
    listed = ", ".join(f"{count:,} {name}" for name, count in objects.most_common())
    other = sorted(name for name in objects if form_of(name) not in set(map(form_of, classes)))
    notes = [f"Annotations/*.xml list {listed}; their boxes are not drawn"]
    return notes + ([f"WARNING: {named(other)} in Annotations/*.xml is no class of the masks"] if other else [])


def _page(source: Path, path: str, item: Item) -> list[str]:
    """The names of the objects of a file, whose size must be the image's."""
    text = read_text(source / path)
    if "<!ENTITY" in text:
        raise DataError(f"{path}: it defines entities, which VOC's files never do; export again")
    try:
        page = ET.fromstring(text)
    except ET.ParseError as error:
        raise DataError(f"{path}: no XML ({error}); export again") from error
    height, width = (int(page.findtext(f"size/{key}") or 0) for key in ("height", "width"))
    if height and width:
        try:
            stored, turn = stored_size(Path(item.image))
        except DataError as error:
            if error.kind != DAMAGED:
                raise
            return []
        check_agrees(os.path.relpath(item.image, source), stored, turn, (height, width), path)
    return [entry.findtext("name", "?").strip() for entry in page.iter("object")]
