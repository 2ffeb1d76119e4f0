"""Detection and instances: the view of a row, and an epoch's order in batches of one orientation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from datasets.sample import decode_image
from datasets.shards import Shards
from datasets.tasks import objects
from datasets.tasks.objects import Objects, read_objects
from datasets.tasks.resized import ResizedView
from datasets.transforms import epoch_order


class DetectionView(ResizedView):
    """A row as an image with boxes, labels and masks of its things; see `ResizedView` for the keys."""

    def read(self, shards: Shards, row: int, seed: int, canvas: tuple[int, int]) -> tuple[np.ndarray, Objects]:
        """The view of a row.

        Args:
            shards: of a benchmark with objects.
            row: its number.
            seed: from `sample_seed`.
            canvas: height and width, pixels, from `canvas` for the sizes of the whole global batch.

        Returns:
            Image uint8 (h, w, 3), padded at right and bottom, and its objects.

        Raises:
            DataError: the row is corrupt, or the classes do not tell what is a thing.
        """
        image = decode_image(shards.encoded(row)[0])
        placed = self.place(image.shape[:2], seed)
        return self.padded(image, placed, canvas), read_objects(shards, row, placed, seed)

    def pack(self, samples: Sequence[tuple[np.ndarray, Objects]]) -> pa.Table:
        """A block of what `read` gives, see `objects.pack`."""
        return objects.pack(samples)

    def unpack(self, table: pa.Table) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """A batch of rows of such a block, see `objects.unpack`."""
        return objects.unpack(table)


def aspect_order(sizes: np.ndarray, rows: int, seed: int, epoch: int, batch: int) -> np.ndarray:
    """The order of an epoch in which global batches are landscape (or square) or portrait, as many as can be.

    Steps cut the stream of all epochs into batches, so an epoch may begin and end inside of one. Those two parts have
    the orientation that more rows have, the same in all epochs: a batch over two epochs is of one orientation too. In
    between, at most one batch of an epoch is mixed: the last, of what each orientation has left. Epochs of fewer than
    four batches may mix more.

    Args:
        sizes: heights and widths of the rows in the order of their ids, int64 (n, 2).
        rows: their number, n.
        seed: the run's.
        epoch: counted from 0.
        batch: images of a global batch.

    Returns:
        As `epoch_order`: each place of the rows' ids in their own order, once.
    """
    order = epoch_order(rows, seed, epoch)
    wide = (sizes[:, 1] >= sizes[:, 0])[order]
    common = 2 * np.count_nonzero(wide) >= rows
    main, other = np.flatnonzero(wide == common), np.flatnonzero(wide != common)
    head = min(-epoch * rows % batch, rows)
    tail = (rows - head) % batch
    if len(main) < head + tail:
        return order
    first, main, last = main[:head], main[head : len(main) - tail], main[len(main) - tail :]
    windows, left = [], []
    for places in (main, other):
        whole = len(places) // batch * batch
        windows += list(places[:whole].reshape(-1, batch))
        left.append(places[whole:])
    windows.sort(key=lambda places: int(places[-1]))  # a batch comes when it is full, reading the plain order
    return order[np.concatenate([first, *windows, *left, last])]
