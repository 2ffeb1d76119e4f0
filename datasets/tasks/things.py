"""Which classes of a split are things, which are stuff, and their labels."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from datasets.readers.coco_categories import STUFF, THINGS
from datasets.sample import IGNORE, DataError
from datasets.text import named

BACKGROUND = "background"
NONE = -1
"""The label of a class that is no thing."""


@lru_cache(maxsize=16)
def things(classes: tuple[str, ...]) -> tuple[int, ...]:
    """The numbers of the classes that are things: a detector's label l stands for the l-th of them.

    Where the first class is `background` (instances), all others are things; else (panoptic) COCO's names tell.

    Args:
        classes: the manifest's.

    Raises:
        DataError: names that tell neither.
    """
    if classes[0] == BACKGROUND:
        return tuple(range(1, len(classes)))
    if unknown := [name for name in classes if name not in THINGS and name not in STUFF]:
        raise DataError(
            f"{len(unknown)} of {len(classes)} classes are neither COCO's things nor its stuff: {named(unknown)}. "
            f"Detection needs shards of objects: with {BACKGROUND!r} as first class, or with COCO's panoptic classes"
        )
    return tuple(number for number, name in enumerate(classes) if name in THINGS)


@lru_cache(maxsize=16)
def stuff(classes: tuple[str, ...]) -> tuple[int, ...]:
    """The numbers of the classes that are stuff: class s of the semantic branch stands for the s-th of them.

    Args:
        classes: the manifest's.

    Raises:
        DataError: there is none, or as `things`.
    """
    found = tuple(number for number in range(len(classes)) if number not in things(classes))
    if found in ((), (0,)):
        raise DataError("no class is stuff; the panoptic task needs shards of coco_panoptic, prepare those")
    return found


@lru_cache(maxsize=16)
def label_table(classes: tuple[str, ...]) -> np.ndarray:
    """Class number -> label of a detector, `NONE` for what is no thing; int64 (number of classes,)."""
    table = np.full(len(classes), NONE, np.int64)
    table[list(things(classes))] = range(len(things(classes)))
    return table


@lru_cache(maxsize=16)
def semantic_table(classes: tuple[str, ...]) -> np.ndarray:
    """Mask value -> class of the semantic branch: stuff 0..K-1, all things K, void 255; uint8 (256,)."""
    table = np.full(256, IGNORE, np.uint8)
    table[list(things(classes))] = len(stuff(classes))
    table[list(stuff(classes))] = range(len(stuff(classes)))
    return table


def category_ids(classes: Sequence[str]) -> tuple[int, ...]:
    """COCO's id of each class, by which its tools know it; 0..K-1 where a class is none of COCO's.

    Args:
        classes: K names; a first one `background` has 0.
    """
    known = {name: number for name, (number, _) in (THINGS | STUFF).items()}
    if any(name not in known for name in classes if name != BACKGROUND):
        return tuple(range(len(classes)))
    return tuple(known.get(name, 0) for name in classes)


def names_of(classes: Sequence[str], numbers: Sequence[int]) -> tuple[str, ...]:
    """The names of some classes."""
    return tuple(classes[number] for number in numbers)
