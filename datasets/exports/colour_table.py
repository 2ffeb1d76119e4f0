"""Tables of colours as tools write them beside RGB masks: CVAT's labelmap.txt, Kaggle's class_dict.csv."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from datasets.exports.names import form_of
from datasets.exports.records import BACKGROUND, Colour, Told
from datasets.readers.colours import read_colour_png, remap_colours
from datasets.sample import IGNORE, DataError, Item
from datasets.text import lines_of, read_text

LABELMAP, CLASS_DICT = "labelmap.txt", "class_dict.csv"
BORDER: Colour = (224, 224, 192)
"""The colour of VOC's value 255: borders between objects."""


def read_table(path: Path) -> dict[Colour, str]:
    """Colour -> name of a class, in the table's order.

    Args:
        path: `labelmap.txt` (name:R,G,B:parts:actions) or `class_dict.csv` (name,r,g,b below a line of titles).

    Raises:
        DataError: a line is no name with a colour, or a colour or a name is given twice.
    """
    text = read_text(path)
    rows = _csv(text) if path.suffix == ".csv" else _labelmap(text)
    table: dict[Colour, str] = {}
    for number, name, channels in rows:
        try:
            red, green, blue = (int(value) for value in channels)
        except ValueError:
            red = green = blue = -1
        if not name or not all(0 <= value <= 255 for value in (red, green, blue)):
            raise DataError(f"{path}: line {number} is no name with a colour R, G, B of 0-255. Correct it")
        if (
            table.setdefault((red, green, blue), name) != name
            or list(map(form_of, table.values())).count(form_of(name)) > 1
        ):
            raise DataError(f"{path}: line {number}: the colour {[red, green, blue]} or the name {name!r} is given "
                            "twice; give each class one colour")  # fmt: skip
    if not table:
        raise DataError(f"{path}: no class is named")
    return table


def _labelmap(text: str) -> list[tuple[int, str, list[str]]]:
    lines = [(number, line) for number, line in enumerate(lines_of(text), 1) if not line.startswith("#")]
    parts = [(number, line.split(":")) for number, line in lines]
    return [(number, entry[0].strip(), entry[1].split(",") if len(entry) > 1 else []) for number, entry in parts]


def _csv(text: str) -> list[tuple[int, str, list[str]]]:
    rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    return [(number, row[0].strip(), row[1:4]) for number, row in enumerate(rows[1:], 2)]


def classes_of_colours(
    table: dict[Colour, str], told: Told
) -> tuple[tuple[str, ...], tuple[Colour, ...], dict[Colour, int]]:
    """Classes in the table's order, the background first; their colours; colour -> class or 255.

    VOC's border colour is 255 unless a class has it. A background that is ignored as told is 255 too.
    """
    grounds = [colour for colour, name in table.items() if form_of(name) == BACKGROUND]
    others = [colour for colour in table if colour not in grounds]
    ordered = others if told.unlabelled == "ignore" else [*grounds, *others]
    numbers = dict.fromkeys(grounds, IGNORE) | {colour: k for k, colour in enumerate(ordered)}
    numbers.setdefault(BORDER, IGNORE)
    names = tuple(BACKGROUND if colour in grounds else table[colour] for colour in ordered)
    return names, tuple(ordered), numbers


def mask_of_colours(item: Item, numbers: Mapping[Colour, int]) -> np.ndarray:
    """The mask of an item whose label is the path of a mask of colours.

    Args:
        item: the item.
        numbers: colour -> class or 255.

    Raises:
        DataError: a damaged file, or a colour outside the table.
    """
    path = str(item.label)
    return remap_colours(read_colour_png(path), numbers, path)
