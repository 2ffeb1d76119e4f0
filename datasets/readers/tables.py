"""What the readers of the large releases share: folders of images and masks, labels of more than 8 bits."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat

from datasets.readers.labels import UNKNOWN, check_present
from datasets.readers.voc import MAT_ERRORS
from datasets.sample import DataError, Item

CONVERTED = "TrainIds.png"
"""Public converters leave such masks beside the released ones; they are none of the release."""


def paired(images: Path, masks: Path, ends: tuple[str, str], tree: str) -> list[Item]:
    """Every image of a folder with its mask, in order of their names; one without the other is an error.

    Args:
        images: folder of the images.
        masks: folder of the masks; may be the same.
        ends: how the names of images and masks end after the common stem, which becomes the id.
        tree: the expected folder, for the message.

    Raises:
        DataError: files are missing, on either side.
    """
    stems = sorted(stems_in(images, ends[0]) | stems_in(masks, ends[1]))
    items = [Item(stem, str(images / f"{stem}{ends[0]}"), str(masks / f"{stem}{ends[1]}")) for stem in stems]
    check_present([path for item in items for path in (item.image, str(item.label))], tree)
    return items


def unlabelled(images: Path, end: str) -> list[Item]:
    """Every image of a folder, in order of their names, without a label."""
    return [Item(stem, str(images / f"{stem}{end}"), None) for stem in sorted(stems_in(images, end))]


def stems_in(folder: Path, end: str) -> set[str]:
    """Stems of the files whose names end so; none of a folder that is not there, nor of hidden files."""
    names = os.listdir(folder) if folder.is_dir() else []
    return {
        name.removesuffix(end)
        for name in names
        if name.endswith(end) and not name.startswith(".") and not name.endswith(CONVERTED)
    }


def check_found(items: list[Item], folder: Path, end: str, tree: str) -> list[Item]:
    """The items as they are.

    Raises:
        DataError: there are none.
    """
    if not items:
        raise DataError(f"{folder}: no file *{end} in it. Expected is this folder; unpack it whole:\n{tree}")
    return items


def first_folder(candidates: Sequence[Path], tree: str) -> Path:
    """The first of the folders that is there.

    Raises:
        DataError: none is.
    """
    for folder in candidates:
        if folder.is_dir():
            return folder.absolute()
    named = ", ".join(map(str, candidates))
    raise DataError(f"no folder {named}; one must be there. Expected is this folder; unpack it whole:\n{tree}")


def wide_table(values: Mapping[int, int]) -> np.ndarray:
    """A table uint8 (65536,) from label values of 16 bits to classes or 255, for `labels.remap`."""
    table = np.full(1 << 16, UNKNOWN, np.uint8)
    for value, target in values.items():
        table[value] = target
    return table


def read_mat(path: str, names: Sequence[str]) -> dict[str, Any]:
    """The named variables of a .mat file, those that it holds.

    Raises:
        DataError: missing or damaged.
    """
    try:
        return loadmat(path, variable_names=list(names))
    except MAT_ERRORS as error:
        raise DataError(f"{path}: the .mat file does not read ({error}); fetch it anew") from error


def label_map(content: Mapping[str, Any], name: str, path: str) -> np.ndarray:
    """A map of labels from what `read_mat` gave; MATLAB may have stored it as any type of number.

    Returns:
        uint16 (H, W), never wrapped.

    Raises:
        DataError: no such variable, no map of numbers, or a value that is no whole number of 0..65535.
    """
    stored = np.asarray(content.get(name))
    if stored.ndim != 2 or stored.dtype.kind not in "uif":
        found = f"{name} is {stored.dtype} {stored.shape}" if name in content else f"there is no variable {name}"
        raise DataError(f"{path}: {found}; expected is {name}, a map of numbers (height, width). Fetch the file anew")
    with np.errstate(invalid="ignore"):
        wrong = ~((stored >= 0) & (stored < 1 << 16) & (stored % 1 == 0))
    if wrong.any():
        row, column = (int(i) for i in np.unravel_index(wrong.argmax(), wrong.shape))
        raise DataError(
            f"{path}: label value {stored[row, column]} at row {row}, column {column} ({wrong.sum()} such pixels); "
            "allowed are whole numbers of 0-65535. Fetch the file anew"
        )
    return stored.astype(np.uint16)


def pixels_covered(counts: bytes) -> int:
    """Pixels that COCO's compressed run lengths cover: height times width, where they are whole.

    A run is a number of 5 bits per byte, lowest first, bit 5 saying that more follow; from the fourth run on, the
    difference to the last but one.
    """
    runs: list[int] = []
    number = shift = 0
    for byte in counts:
        number |= ((byte - 48) & 31) << shift
        shift += 5
        if not (byte - 48) & 32:
            number -= (1 << shift) if (byte - 48) & 16 else 0  # the last byte bears the sign
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = shift = 0
    return sum(runs)
