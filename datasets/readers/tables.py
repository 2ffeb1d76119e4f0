"""What the readers of the large releases share: folders of images and masks, labels of more than 8 bits."""

import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from datasets.readers.files import leads_nowhere, naming_file
from datasets.readers.labels import UNKNOWN, check_items, first_place
from datasets.sample import DataError, Item

CONVERTED = "TrainIds.png"
"""The end of the names of masks that public converters write next to the released ones."""

MAT_ERRORS = (
    MatReadError, zlib.error, OSError, KeyError, ValueError, TypeError, IndexError, NotImplementedError
)  # fmt: skip
"""What SciPy raises on damaged files, on HDF5 files, and on files with other fields."""


def paired(images: Path, masks: Path, ends: tuple[str, str], tree: str) -> list[Item]:
    """The images of a folder with their masks, in order of their names; one without the other is an error.

    Args:
        images: folder of the images.
        masks: folder of the masks; may be the same.
        ends: how the names of images and masks end after the common stem, which becomes the id.
        tree: the expected folder, for the message.

    Raises:
        DataError: images or masks are missing.
    """
    stems = sorted(stems_in(images, ends[0]) | stems_in(masks, ends[1]))
    items = [Item(stem, str(images / f"{stem}{ends[0]}"), str(masks / f"{stem}{ends[1]}")) for stem in stems]
    check_items(items, tree)
    return items


def unlabelled(images: Path, end: str) -> list[Item]:
    """The images of a folder, in order of their names, without labels."""
    return [Item(stem, str(images / f"{stem}{end}"), None) for stem in sorted(stems_in(images, end))]


def stems_in(folder: Path, end: str) -> set[str]:
    """The stems of the files whose names end in `end`, without hidden files; none where there is no folder."""
    names = os.listdir(folder) if folder.is_dir() else []
    return {
        name.removesuffix(end)
        for name in names
        if name.endswith(end) and not name.startswith(".") and not name.endswith(CONVERTED)
    }


def check_found(items: list[Item], folder: Path, end: str, tree: str) -> list[Item]:
    """The items as they are, unless there are none.

    Args:
        items: the items.
        folder: where they were looked for, for the message.
        end: how their images' names end, for the message.
        tree: the expected folder, for the message.

    Raises:
        DataError: there are no items.
    """
    if not items:
        raise DataError(f"{folder}: no file *{end} in it. Expected is this folder; unpack it whole:\n{tree}")
    return items


def first_folder(candidates: Sequence[Path], tree: str) -> Path:
    """The first of the folders that exists.

    Raises:
        DataError: none exists.
    """
    for folder in candidates:
        if folder.is_dir():
            return folder.absolute()
    named = ", ".join(f"{folder}{leads_nowhere(folder)}" for folder in candidates)
    raise DataError(f"no folder {named}; one must be there. Expected is this folder; unpack it whole:\n{tree}")


def wide_table(values: Mapping[int, int]) -> np.ndarray:
    """A table for `labels.remap` of labels of 16 bits.

    Args:
        values: label value -> class or 255.

    Returns:
        uint8 (65536,), UNKNOWN for all other values.
    """
    table = np.full(1 << 16, UNKNOWN, np.uint8)
    for value, target in values.items():
        table[value] = target
    return table


def read_mat(path: str, names: Sequence[str]) -> dict[str, Any]:
    """Those of the named variables that a .mat file holds.

    Raises:
        DataError: the file is missing or damaged.
    """
    with naming_file(path, "the .mat file does not read", MAT_ERRORS):
        return loadmat(path, variable_names=list(names))


def label_map(content: Mapping[str, Any], name: str, path: str) -> np.ndarray:
    """A map of labels from the variables of `read_mat`; MATLAB may have stored it as any type of number.

    Args:
        content: the variables.
        name: the map's.
        path: the file, for the message.

    Returns:
        uint16 (H, W), never wrapped.

    Raises:
        DataError: the variable is missing or no map of numbers, or a value is no whole number of 0..65535.
    """
    stored = np.asarray(content.get(name))
    if stored.ndim != 2 or stored.dtype.kind not in "uif":
        found = f"{name} is {stored.dtype} {stored.shape}" if name in content else f"there is no variable {name}"
        raise DataError(f"{path}: {found}; expected is {name}, a map of numbers (height, width). Fetch the file again")
    with np.errstate(invalid="ignore"):
        wrong = ~((stored >= 0) & (stored < 1 << 16) & (stored % 1 == 0))
    if wrong.any():
        row, column = first_place(wrong)
        raise DataError(
            f"{path}: label value {stored[row, column]} at row {row}, column {column} ({wrong.sum()} such pixels); "
            "allowed are whole numbers of 0-65535. Fetch the file again"
        )
    return stored.astype(np.uint16)


def pixels_covered(counts: bytes) -> int:
    """Pixels that COCO's compressed run lengths cover: height times width where they are whole; -1 if they are none.

    Each byte of a run holds 5 bits of its number, lowest first, and in bit 5 whether more bytes follow. From the
    fourth run on, the number is the difference to the last run but one.
    """
    runs: list[int] = []
    number = shift = 0
    if any(not 48 <= byte < 112 for byte in counts):
        return -1
    for byte in counts:
        number |= ((byte - 48) & 31) << shift
        shift += 5
        if not (byte - 48) & 32:
            number -= (1 << shift) if (byte - 48) & 16 else 0  # the last byte has the sign
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = shift = 0
    return -1 if shift or min(runs, default=0) < 0 else sum(runs)
