"""Images and masks inside Parquet files, as HuggingFace's hub stores them."""

import os
import re
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets.exports.masked import Numbers, numbered
from datasets.exports.pages import read_json
from datasets.exports.pairing import by_split
from datasets.exports.records import Export, Tally, Told
from datasets.readers.classes_yaml import PAGE, read_settings
from datasets.readers.files import of_file
from datasets.readers.labels import colour_map, image_of, lookup_table, mask_values, remap
from datasets.readers.own_tree import SPLIT_OF
from datasets.sample import DAMAGED, IGNORE, Cell, DataError, Item, Sample, image_size
from datasets.text import named, shown

IMAGE = ("image", "pixel_values", "img")
MASKS = ("label", "annotation", "mask", "labels", "segmentation_mask", "semantic_mask")
"""What the columns are called."""
NAMES = "id2label.json"
TREE = """\
DIR/                                   image/mask Parquet, as on HuggingFace's hub
  data/train-00000-of-00004.parquet    columns image and label (or annotation, mask), each {bytes, path}; the name
                                       before the first dash is the split; masks are PNGs whose values are classes
  id2label.json                        {"0": "background", "1": "road"}; or classes.yaml; without: all values found,
                                       called 'value 7'. A value 0 without a name is unlabelled area, 255 is ignored"""


def fits(source: Path, files: list[str]) -> str:
    """Why a folder holds images and masks in Parquet; "" where it does not."""
    found = [path for path in files if path.endswith(".parquet")]
    return f"{found[0]} holds images and masks" if found and all(_columns(source / found[0])) else ""


def _columns(path: Path) -> tuple[str, str]:
    """The columns of images and of masks; "" for one that is not there."""
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError):
        return "", ""
    cells = {field.name for field in schema
             if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0}  # fmt: skip
    return next((n for n in IMAGE if n in cells), ""), next((n for n in MASKS if n in cells), "")


def read(source: Path, files: list[str], told: Told) -> Export:
    """Read all Parquet files of a folder; see `Format`.

    Every mask is decoded once, to find the classes and to count them.
    """
    parts = [path for path in files if path.endswith(".parquet")]
    if not parts:
        raise DataError(f"{source}: no Parquet file. Expected is:\n{TREE}")
    rows: dict[str, list[Item]] = {}
    pixels, images = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for path in parts:
        split = _split(path)
        for item, found in _scanned(source, path):
            rows.setdefault(split, []).append(item)
            pixels, images = pixels + found, images + (found > 0)
    numbers, palette, ignored, notes = _classes(source, files, np.flatnonzero(pixels), told)
    faults = [int(v) for v in np.flatnonzero(pixels) if int(v) not in numbers.of]
    if faults:
        raise DataError(f"{source}: masks hold the value(s) {named(faults)}, which no class has; name them in {NAMES} "
                        f"or in {PAGE}, or ignore them there")  # fmt: skip
    done = by_split(source, {split: _apart(items) for split, items in rows.items()}, TREE)
    table = lookup_table(numbers.of)
    tallies = [Tally(name, None, int(images[mine].sum() if len(mine) == 1 else images[mine].max(initial=0)),
                     int(pixels[mine].sum()))
               for k, name in enumerate(numbers.classes)
               for mine in [[v for v, to in numbers.of.items() if to == k]]]  # fmt: skip
    gone = [v for v, to in numbers.of.items() if to == IGNORE]
    if pixels[gone].sum():
        tallies.append(Tally("(ignored)", None, int(images[gone].max()), int(pixels[gone].sum())))
    used = {*parts, NAMES, PAGE}
    return Export(numbers.classes, palette, done, partial(read_cell, table=table), tuple(tallies), ignored, notes, used)


def _split(path: str) -> str:
    """The split of a file: the beginning of its name, else its folder."""
    words = [re.split(r"[-.]", os.path.basename(path))[0], *path.split("/")[:-1][::-1]]
    return next((SPLIT_OF[word.lower()] for word in words if word.lower() in SPLIT_OF), "")


def _apart(items: list[Item]) -> list[Item]:
    """The rows under the names that their images have, or, where some share one, under their file and number."""
    if len({item.id for item in items}) == len(items):
        return items
    return [replace(item, id=_numbered(item)) for item in items]


def _numbered(item: Item) -> str:
    """A row's id where images have no names: its file, row group and row."""
    cell: Cell = item.label  # type: ignore[assignment]
    return f"{os.path.splitext(os.path.basename(item.image))[0]}-{cell.group}-{cell.row}"


def _classes(
    source: Path, files: list[str], seen: np.ndarray, told: Told
) -> tuple[Numbers, tuple[tuple[int, int, int], ...], str, tuple[str, ...]]:
    """What values mean, colours, what is ignored, and notes."""
    if PAGE in files:
        page = read_settings(source / PAGE, TREE)
        if page.colours:
            raise DataError(f"{source / PAGE}: masks in Parquet are read by their values; write classes, not colours")
        return Numbers(page.names, page.values, 0, ()), page.palette, page.ignored, page.notes
    notes: tuple[str, ...] = ()
    given = next((path for path in files if os.path.basename(path) == NAMES), "")
    if given:
        values = _named(read_json(source, given), given)
    else:
        values = {int(v): f"value {v}" for v in seen if v not in (0, IGNORE)}
        notes = (f"no {NAMES} and no {PAGE}: the classes are the values of the masks; name them there",)
    numbers = numbered(values, told)
    of = {0: numbers.unlabelled, IGNORE: IGNORE} | numbers.of
    usual = colour_map(256)
    palette = tuple(usual[place] if place > 0 else usual[0] for place in numbers.kept)
    ignored = "unlabelled area, as told, and mask value 255" if told.unlabelled == "ignore" else "mask value 255"
    return Numbers(numbers.classes, of, numbers.unlabelled, numbers.kept), palette, ignored, notes


def _named(page: Any, path: str) -> dict[int, str]:
    """Value -> name of `id2label.json`."""
    try:
        values = {int(key): str(name) for key, name in page.items()}
    except (AttributeError, ValueError) as error:
        raise DataError(f'{path}: expected is {{"0": "background", "1": "road"}} ({error})') from error
    if wrong := [key for key in values if not 0 <= key <= IGNORE]:
        raise DataError(f"{path}: values {named(wrong)}; masks hold 0-255")
    return values


def _scanned(source: Path, path: str) -> list[tuple[Item, np.ndarray]]:
    """The rows of a file, each with its mask's histogram.

    Raises:
        DataError: the file is damaged or has no such columns, or a row holds no bytes or no mask that can be read.
    """
    full = str(source / path)
    image, mask = _columns(source / path)
    if not image or not mask:
        raise DataError(f"{path}: no columns of images and masks ({{bytes, path}}), called {', '.join(IMAGE)} and "
                        f"{', '.join(MASKS)}; the file is damaged, or holds something else. Remove it, or fetch it "
                        "again")  # fmt: skip
    found = []
    with pq.ParquetFile(full) as file:
        for group in range(file.num_row_groups):
            for row, cells in enumerate(_group(full, group)):
                at = f"{path}, row {row} of row group {group}"
                with of_file(at):
                    for name, cell in zip((image, mask), cells, strict=True):
                        if cell is None or not cell["bytes"]:
                            raise DataError(f"{name} holds no bytes, only a path to somewhere else; fetch the data set "
                                            "with its files inside")  # fmt: skip
                    values = mask_values(cells[1]["bytes"], at)
                    size = image_size(cells[0]["bytes"])
                    if size != values.shape:
                        raise DataError(f"the image is {size[1]}x{size[0]} pixels (width x height), its mask "
                                        f"{values.shape[1]}x{values.shape[0]}; both must be of one size")  # fmt: skip
                stem = os.path.splitext(os.path.basename(cells[0].get("path") or ""))[0]
                item = Item(shown(stem), full, Cell(group, row, *size), len(cells[0]["bytes"]))
                item = item if stem else replace(item, id=_numbered(item))
                found.append((item, np.bincount(values.reshape(-1), minlength=256)))
    return found


def _group(path: str, group: int) -> list[tuple[Any, Any]]:
    """The cells of a row group, images and masks."""
    return _group_of(path, group, os.stat(path).st_mtime_ns)


@lru_cache(maxsize=1)  # rows are read in order: one group at a time is in memory
def _group_of(path: str, group: int, changed: int) -> list[tuple[Any, Any]]:
    names = _columns(Path(path))
    try:
        with pq.ParquetFile(path) as file:
            table = file.read_row_group(group, columns=list(names))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: damaged ({error}); fetch the file again", DAMAGED) from error
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


def read_cell(item: Item, table: np.ndarray) -> Sample:
    """Read an item that is a row of a Parquet file.

    Args:
        item: its label is a `Cell`.
        table: of `lookup_table`.

    Raises:
        DataError: damaged bytes, or a value without a class.
    """
    cell: Cell = item.label  # type: ignore[assignment]
    image, mask = _group(item.image, cell.group)[cell.row]
    at = f"{item.image}, {item.id}"
    with of_file(at):
        data, _ = image_of(image["bytes"])
    return Sample(item.id, data, remap(mask_values(mask["bytes"], at), table, at))
