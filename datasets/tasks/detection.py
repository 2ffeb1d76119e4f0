"""Detection and instances: the view of a row."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from datasets.sample import decode_image
from datasets.shards import Shards
from datasets.tasks import objects
from datasets.tasks.objects import Objects, read_objects
from datasets.tasks.resized import ResizedView


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
