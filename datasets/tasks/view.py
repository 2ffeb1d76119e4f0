"""What a task sees of a row, and how that travels."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa

from datasets.shards import Shards
from datasets.transforms import epoch_order


class TaskView(ABC):
    """The views of one task; a frozen dataclass, so that the plan of a stage travels with it and caches know it."""

    orders: ClassVar[bool] = False
    """Whether `order` is another than a plain permutation."""

    @classmethod
    @abstractmethod
    def of(cls, crop: tuple[int, int], scale: tuple[float, float], flip: float, *, train: bool) -> Self:
        """The view of a recipe's `view.crop`, `view.scale` and `view.flip`; not `train`: of validation, without chance.

        Raises:
            DataError: a value out of its range.
        """

    @property
    @abstractmethod
    def words(self) -> str:
        """The view of validation in words, as part of a score's protocol."""

    @abstractmethod
    def canvas(self, sizes: np.ndarray) -> tuple[int, int]:
        """Height and width, pixels, that all images of a batch share.

        Args:
            sizes: of the images of the global batch, int64 (n, 2), height and width.
        """

    @abstractmethod
    def read(self, shards: Shards, row: int, seed: int, canvas: tuple[int, int]) -> tuple[np.ndarray, Any]:
        """One view of a row.

        Args:
            shards: of the split.
            row: its number.
            seed: from `sample_seed`; a view without chance does not look at it.
            canvas: of the batch.

        Returns:
            Image uint8 (h, w, 3) as large as the canvas, padded at the right and bottom, and its target in the form in
            which it travels.
        """

    @abstractmethod
    def alone(self, image: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        """What a view without chance sees of an image of which nothing else is known.

        Args:
            image: uint8 (H, W, 3).

        Returns:
            Uint8 (h, w, 3) as large as its own canvas, and height and width of the image in it, pixels.
        """

    @abstractmethod
    def pack(self, samples: Sequence[tuple[np.ndarray, Any]]) -> pa.Table:
        """What `read` gave of several rows, as a table of raw bytes, a row each; canvases may differ."""

    @abstractmethod
    def unpack(self, table: pa.Table) -> tuple[np.ndarray, Any]:
        """Images uint8 (B, H, W, 3) and targets of rows of such a table that share a canvas.

        Targets are an array with an entry for each image, or a list with a dict for each, of arrays and numbers.
        """

    def order(self, sizes: np.ndarray, seed: int, epoch: int, batch: int) -> np.ndarray:
        """The order of an epoch, as `epoch_order` gives it: each place of the rows in the order of their ids, once.

        Args:
            sizes: of the rows in that order, int64 (n, 2).
            seed: the run's.
            epoch: counted from 0.
            batch: images of a step, of all workers.
        """
        return epoch_order(len(sizes), seed, epoch)
