"""Validation batches: every row exactly once, read ahead by threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from datasets.shards import Shards
from pipelines.feed.batch import Batch, make_batch


def validation_batches(shards: Shards, batch: int) -> list[list[int]]:
    """All rows exactly once, in batches of rows of one image size.

    The list does not depend on the number of workers, so that worker r of n takes entries r, r + n, … and every image
    meets the same batch mates, hence the same rounding, whatever n is.
    """
    order = sorted(range(len(shards)), key=lambda row: (*map(int, shards.sizes[row]), shards.ids[row]))
    batches: list[list[int]] = []
    for row in order:
        fits = batches and len(batches[-1]) < batch and tuple(shards.sizes[batches[-1][0]]) == tuple(shards.sizes[row])
        if fits:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def read_ahead(shards: Shards, batches: list[list[int]], threads: int = 2) -> Iterator[Batch]:
    """Whole images and masks of the given rows, decoded by threads while the model works (OpenCV frees the GIL)."""

    def read(rows: list[int]) -> Batch:
        images, masks = zip(*map(shards.sample, rows), strict=True)
        return make_batch(np.stack(images), np.stack(masks))

    with ThreadPoolExecutor(threads) as pool:
        waiting = [pool.submit(read, rows) for rows in batches[: 2 * threads]]
        for rows in [*batches[2 * threads :], *[[]] * len(waiting)]:
            yield waiting.pop(0).result()
            if rows:
                waiting.append(pool.submit(read, rows))
