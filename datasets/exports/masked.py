"""Masks to rows: every mask is read once before a row is written, so that classes are counted and faults known."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from datasets.exports.finding import check_agrees, stored_size
from datasets.exports.names import form_of
from datasets.exports.painting import paint
from datasets.exports.records import BACKGROUND, Tally, Told
from datasets.readers.labels import read_pair
from datasets.sample import DAMAGED, IGNORE, DataError, Item, Sample
from datasets.text import named

MaskOf = Callable[[Item], np.ndarray]
FAULTS = 10
"""Faults of a folder that a message names."""


@dataclass(frozen=True)
class Numbers:
    """What the values of masks become.

    Args:
        classes: K names.
        of: value, or place in a list of names -> class or 255.
        unlabelled: the class of what has no label, or 255.
        kept: of each class, its place in the list that it was made of; -1 for a background that was not listed.
    """

    classes: tuple[str, ...]
    of: dict[int, int]
    unlabelled: int
    kept: tuple[int, ...]


def numbered(values: Mapping[int, str], told: Told) -> Numbers:
    """Classes of named values: the background first, or ignored as told; the others in order of their values.

    Args:
        values: mask value -> name; a value without a name that stands for unlabelled pixels is left out.
        told: what a person decided.

    Raises:
        DataError: two values have one name, or no class is left.
    """
    forms = {value: form_of(name) for value, name in sorted(values.items())}
    if twice := [name for name, count in Counter(forms.values()).items() if count > 1]:
        raise DataError(f"two classes are called {twice[0]!r}; rename one")
    grounds = [value for value, form in forms.items() if form == BACKGROUND]
    others = [value for value in forms if value not in grounds]
    ignored = told.unlabelled != BACKGROUND
    if not others:
        raise DataError("no class besides the background is named; name the classes")
    names = [values[value].strip() for value in others]
    if ignored:
        return Numbers(tuple(names), {v: k for k, v in enumerate(others)} | dict.fromkeys(grounds, IGNORE), IGNORE,
                       tuple(others))  # fmt: skip
    of = {v: k for k, v in enumerate(others, 1)} | dict.fromkeys(grounds, 0)
    return Numbers((BACKGROUND, *names), of, 0, (grounds[0] if grounds else -1, *others))


def read_masked(item: Item, mask_of: MaskOf) -> Sample:
    """Read an image and its mask.

    Args:
        item: its label is a drawing where the image has no mask and is kept all the same.
        mask_of: reads the mask.

    Raises:
        DataError: a damaged file, or two sizes.
    """
    return read_pair(item, partial(mask_at, item, mask_of))


def mask_at(item: Item, mask_of: MaskOf) -> np.ndarray:
    """The mask of an item, or the one that its drawing asks for."""
    return paint(item.label) if isinstance(item.label, tuple) else mask_of(item)


def counted(
    source: Path, rows: Mapping[str, list[Item]], classes: tuple[str, ...], mask_of: MaskOf, sized: bool = True
) -> tuple[Tally, ...]:
    """What all masks hold, by class; what is ignored comes last.

    Args:
        source: the folder, for messages.
        rows: of all splits.
        classes: K names.
        mask_of: reads a mask.
        sized: whether images are files, whose sizes are compared with their masks'.

    Raises:
        DataError: masks that cannot be read as classes or have another size than their image; up to ten are named.
    """
    items = [item for part in rows.values() for item in part if item.label is not None]
    pixels, images = np.zeros(IGNORE + 1, np.int64), np.zeros(IGNORE + 1, np.int64)
    faults: list[str] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for found in pool.map(partial(_histogram, source=source, mask_of=mask_of, sized=sized), items):
            if isinstance(found, str):
                faults.append(found)
            elif found is not None:
                pixels, images = pixels + found, images + (found > 0)
    if faults:
        told_of = named(faults, FAULTS, between="\n  ")
        raise DataError(faults[0] if len(faults) == 1 else f"{source}: {len(faults):,} masks are wrong:\n  {told_of}")
    return tuple(_lines(classes, pixels, images))


def _lines(classes: tuple[str, ...], pixels: np.ndarray, images: np.ndarray) -> Iterator[Tally]:
    rows = list(enumerate(classes)) + ([(IGNORE, "(ignored)")] if pixels[IGNORE] else [])
    for number, name in rows:
        yield Tally(name, None, int(images[number]), int(pixels[number]))


def _histogram(item: Item, source: Path, mask_of: MaskOf, sized: bool) -> np.ndarray | str | None:
    """Pixels of each value; a fault as text; None for what is damaged, which is reported when it is written."""
    try:
        mask = mask_at(item, mask_of)
        if sized:
            size, _ = stored_size(Path(item.image))
            image = os.path.relpath(item.image, source)
            check_agrees(image, size, 1, mask.shape[:2], f"its mask ({os.path.basename(_file_of(item))})")
    except DataError as error:
        return None if error.kind == DAMAGED else str(error)
    return np.bincount(mask.reshape(-1), minlength=IGNORE + 1)


def _file_of(item: Item) -> str:
    return item.label if isinstance(item.label, str) else item.image
