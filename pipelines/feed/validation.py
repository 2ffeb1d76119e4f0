"""Validation batches: every row exactly once, read ahead by threads."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from datasets.shards import Shards
from datasets.tasks.view import TaskView
from pipelines.feed.batch import Batch, make_batch


def validation_batches(shards: Shards, batch: int | Callable[[Sequence[int]], int]) -> list[list[int]]:
    """All rows exactly once, in batches of rows of one image size.

    The list does not depend on the number of workers, so that worker r of n takes entries r, r + n, … and every image
    meets the same batch mates, hence the same rounding, whatever n is.

    Args:
        shards: of the split.
        batch: most rows of a batch, or what gives that of images of a size (h, w).
    """
    order = sorted(range(len(shards)), key=lambda row: (*map(int, shards.sizes[row]), shards.ids[row]))
    batches: list[list[int]] = []
    for size, alike in itertools.groupby(order, key=lambda row: tuple(map(int, shards.sizes[row]))):
        rows, most = list(alike), batch(size) if callable(batch) else batch
        batches += [rows[first : first + most] for first in range(0, len(rows), most)]
    return batches


def view_batches(shards: Shards, view: TaskView, most: int) -> list[list[int]]:
    """Likewise, in batches of rows that share a canvas."""
    order = sorted(range(len(shards)), key=lambda row: (view.canvas(shards.sizes[[row]]), shards.ids[row]))
    batches: list[list[int]] = []
    for _, alike in itertools.groupby(order, key=lambda row: view.canvas(shards.sizes[[row]])):
        rows = list(alike)
        batches += [rows[first : first + most] for first in range(0, len(rows), most)]
    return batches


def shown_rows(shards: Shards, count: int) -> list[int]:
    """So many rows, or all, spread evenly over a split in the order of their ids: the same ones each time."""
    places = np.linspace(0, len(shards) - 1, min(count, len(shards))).astype(int)
    return [int(row) for row in np.argsort(np.array(shards.ids))[places]]


def read_ahead(shards: Shards, batches: list[list[int]], threads: int = 2) -> Generator[Batch]:
    """Whole images and masks of the given rows, decoded by threads while the model works (OpenCV frees the GIL)."""

    def read(rows: list[int]) -> Batch:
        images, masks = zip(*map(shards.sample, rows), strict=True)
        return make_batch(np.stack(images), np.stack(masks))

    return in_threads(read, batches, threads)


def read_views(shards: Shards, batches: list[list[int]], view: TaskView, threads: int = 2) -> Generator[Batch]:
    """Likewise, what a task's view without chance gives of the rows."""

    def read(rows: list[int]) -> Batch:
        canvas = view.canvas(shards.sizes[rows])
        return make_batch(*view.unpack(view.pack([view.read(shards, row, 0, canvas) for row in rows])))

    return in_threads(read, batches, threads)


def in_threads(read: Callable[[list[int]], Batch], batches: list[list[int]], threads: int) -> Generator[Batch]:
    """Batches in their order, read by threads ahead of who takes them."""
    with ThreadPoolExecutor(threads) as pool:
        waiting = [pool.submit(read, rows) for rows in batches[: 2 * threads]]
        for rows in [*batches[2 * threads :], *[[]] * len(waiting)]:
            yield waiting.pop(0).result()
            if rows:
                waiting.append(pool.submit(read, rows))
