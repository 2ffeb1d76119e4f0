"""The panoptic task: the view of a row with its things and a semantic layer of its stuff."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from datasets.sample import IGNORE
from datasets.shards import Shards
from datasets.tasks import objects
from datasets.tasks.objects import Objects, read_objects
from datasets.tasks.resized import ResizedView
from datasets.tasks.things import semantic_table


class PanopticView(ResizedView):
    """A row as `DetectionView` gives it, and its stuff; see `ResizedView` for the keys."""

    def read(self, shards: Shards, row: int, seed: int, canvas: tuple[int, int]) -> tuple[np.ndarray, Objects]:
        """The view of a row, as of `DetectionView`.

        Returns:
            Image uint8 (h, w, 3) and its objects with `semantic`: classes 0..K-1 of stuff, K on all things, crowds
            among them, 255 where nothing is labelled and in the padding.

        Raises:
            DataError: the row is corrupt, or the classes do not tell what is a thing and what is stuff.
        """
        image, mask = shards.sample(row)
        placed = self.place(mask.shape, seed)
        semantic = np.full(canvas, IGNORE, np.uint8)
        placed.put(cv2.LUT(mask, semantic_table(shards.manifest.classes)), semantic)
        things = read_objects(shards, row, placed, seed)
        return self.padded(image, placed, canvas), replace(things, semantic=semantic)

    def pack(self, samples: Sequence[tuple[np.ndarray, Objects]]) -> pa.Table:
        """A block of what `read` gives, see `objects.pack`."""
        return objects.pack(samples)

    def unpack(self, table: pa.Table) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """A batch of rows of such a block, see `objects.unpack`."""
        return objects.unpack(table)
