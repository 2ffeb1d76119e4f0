"""Masks of 0 and 255: black for one class, white for the other."""

import itertools
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from datasets.readers.labels import read_index_png
from datasets.sample import DataError

WHITE = 255


def taken_as_binary(paths: Sequence[str]) -> bool:
    """Whether masks hold 0 and 255 only, so that 255 is the second of two classes, and nothing to ignore.

    Reads masks until one shows another value; a mask that does not read is reported when it is read for its shard.

    Args:
        paths: all masks.
    """
    white = False
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for batch in _batches(paths, 8, 256):
            for other, has_white in pool.map(_values, batch):
                if other:
                    return False
                white = white or has_white
    return white


def _batches(paths: Sequence[str], *sizes: int) -> Iterable[Sequence[str]]:
    """Runs of the paths: a short one first, because the first masks usually decide."""
    rest = iter(paths)
    for size in itertools.chain(sizes, itertools.repeat(sizes[-1])):
        if not (batch := list(itertools.islice(rest, size))):
            return
        yield batch


def _values(path: str) -> tuple[bool, bool]:
    """Whether a mask has values other than 0 and 255, and whether it has 255."""
    try:
        stored = read_index_png(path)
    except DataError:
        return False, False
    white = stored == WHITE
    return bool(((stored != 0) & ~white).any()), bool(np.any(white))
