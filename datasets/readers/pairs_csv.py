"""The `pairs.csv` of the user's own folder: which image has which mask, in which split."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from datasets.readers.own_tree import SPLIT_OF, SPLITS
from datasets.sample import DataError
from datasets.text import read_text

PAIRS = "pairs.csv"
COLUMNS = ("image", "mask", "split")
SEPARATORS = (",", ";", "\t")
"""Spreadsheets of some countries write semicolons; their `Unicode text` has tabs."""


@dataclass(frozen=True)
class Row:
    """One row.

    Args:
        image: path of the image in the folder.
        mask: path of the mask in the folder; "" for no label.
        split: train, val or test.
    """

    image: str
    mask: str
    split: str


def read_rows(path: Path) -> list[Row]:
    """The rows of the table.

    Raises:
        DataError: another first line, no rows, or a row that names no image or no split.
    """
    text = read_text(path)
    names, separator = _head(text, path)
    try:
        table = list(csv.DictReader(io.StringIO(text, newline=""), names, delimiter=separator, strict=True))[1:]
    except csv.Error as error:
        raise DataError(f"{path}: no table ({error}); save it as CSV again") from error
    if not table:
        raise DataError(f"{path}: no row below the first line; expected is a row per image")
    return [_row(entries, names, number, path) for number, entries in enumerate(table, 2)]


def _head(text: str, path: Path) -> tuple[list[str], str]:
    """The columns' names and what separates them."""
    first = text.lstrip().splitlines()[0] if text.strip() else ""
    for separator in SEPARATORS:
        names = [name.strip().strip('"').lower() for name in first.split(separator)]
        if names in (list(COLUMNS), list(COLUMNS[:2])):
            return names, separator
    raise DataError(f"{path}: the first line is {first!r}; expected is image,mask or image,mask,split")


def _row(entries: dict[str | None, str | list[str] | None], names: list[str], number: int, path: Path) -> Row:
    if extra := entries.get(None):
        raise DataError(f"{path}: row {number} has {len(names) + len(extra)} entries, the first line {len(names)}; put "
                        "a name that holds the separator in double quotes")  # fmt: skip
    row = {"split": "train"} | {name: str(entries[name] or "").strip() for name in names}
    split = SPLIT_OF.get(row["split"].lower(), "")
    if not Path(row["image"]).name or not split:
        raise DataError(f"{path}: row {number} is {row}; needed are an image and a split of {', '.join(SPLITS)}")
    return Row(row["image"], row["mask"], split)
