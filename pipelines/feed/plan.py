"""Which samples a worker sees when, and how one of them is read: all that Ray Data's tasks need, and no torch.

A stage's samples form one stream: epoch after epoch, each an exact permutation of the rows. Step t takes positions
[t * batch, (t + 1) * batch) of it, worker r its r-th equal part, and position p is augmented by a generator seeded
with (seed, epoch, sample id). So a batch is a pure function of recipe, shards and step: neither the number of
workers, nor the blocks that travel, nor the step at which a resume started can change it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from datasets.raw_column import column
from datasets.sample import DataError, keep_freed_memory
from datasets.shards import Shards
from datasets.tasks.view import TaskView
from datasets.transforms import TrainView, epoch_order, sample_seed
from pipelines.cluster.nodes import blind


@dataclass(frozen=True)
class SamplePlan:
    """Which samples a worker sees when; all that the feeding tasks need to know.

    `batch` is global; worker `rank` of `world` takes `batch / world` of each step, from step `start` up to `steps`.
    """

    shards: str
    rows: int
    view: TrainView | TaskView
    seed: int
    batch: int
    steps: int
    world: int = 1
    rank: int = 0
    start: int = 0

    @property
    def share(self) -> int:
        """Images of one step for one worker."""
        return self.batch // self.world

    @property
    def crops(self) -> TrainView:
        """Its view, of a plan of segmentation.

        Raises:
            TypeError: it is another task's.
        """
        if not isinstance(self.view, TrainView):
            raise TypeError(f"{type(self.view).__name__} is not a view of masks")
        return self.view

    def positions(self, step: int, rank: int | None = None) -> range:
        """Stream positions that a worker (by default this one) takes at `step`."""
        first = step * self.batch + (self.rank if rank is None else rank) * self.share
        return range(first, first + self.share)

    def ids(self, step: int) -> list[str]:
        """Sample ids of the whole global batch of `step`."""
        index = open_shards(self.shards).index
        everyone = range(step * self.batch, (step + 1) * self.batch)
        return [index.name(row_of(self, position)[1]) for position in everyone]


@functools.lru_cache(maxsize=8)
def open_shards(uri: str) -> Shards:
    """The shards, opened once per process."""
    keep_freed_memory()
    return Shards(uri)


@functools.lru_cache(maxsize=2)
def order_of(plan: SamplePlan, epoch: int) -> np.ndarray:
    """As `epoch_order`, or as the view has it; kept for this epoch and the one before: 4 bytes a row and epoch."""
    if isinstance(plan.view, TaskView) and plan.view.orders:
        shards = open_shards(plan.shards)
        return plan.view.order(shards.sizes[shards.index.by_id], plan.seed, epoch, plan.batch)
    return epoch_order(plan.rows, plan.seed, epoch)


def row_of(plan: SamplePlan, position: int) -> tuple[int, int]:
    """(epoch, row) of a stream position."""
    epoch, place = divmod(position, plan.rows)
    return epoch, int(open_shards(plan.shards).index.by_id[order_of(plan, epoch)[place]])


def canvas_of(plan: SamplePlan, step: int) -> tuple[int, int]:
    """Height and width that all images of a step share, of all workers."""
    if isinstance(plan.view, TrainView):
        return plan.view.crop
    everyone = range(step * plan.batch, (step + 1) * plan.batch)
    return plan.view.canvas(open_shards(plan.shards).sizes[[row_of(plan, position)[1] for position in everyone]])


def read_task_sample(plan: SamplePlan, position: int) -> tuple[np.ndarray, Any]:
    """Image uint8 (h, w, 3) of the step's canvas at a stream position, and what its view gives with it."""
    assert isinstance(plan.view, TaskView)
    shards = open_shards(plan.shards)
    epoch, row = row_of(plan, position)
    seed = sample_seed(plan.seed, epoch, shards.index.name(row))
    return plan.view.read(shards, row, seed, canvas_of(plan, position // plan.batch))


def read_sample(
    plan: SamplePlan, position: int, out: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 (h, w, 3) and mask uint8 (h, w) of a stream position, cropped to the view; in `out` if given."""
    shards = open_shards(plan.shards)
    epoch, row = row_of(plan, position)
    image, mask = shards.sample(row)
    return plan.crops(image, mask, sample_seed(plan.seed, epoch, shards.index.name(row)), out)


def read_blocks(table: pa.Table, plan: SamplePlan, per_block: int) -> Iterator[pa.Table]:
    """Ray Data's task: steps in, blocks of `per_block` steps' views out, one on its way while the next is read.

    Raises:
        BlindNode: the task's node does not see the shards, which the worker's does.
    """
    see(plan.shards)
    steps = table["step"].to_pylist()
    for first in range(0, len(steps), per_block):
        yield read_block([p for step in steps[first : first + per_block] for p in plan.positions(step)], plan)


def see(uri: str) -> None:
    """Open the shards; an error is reported as the node's.

    Raises:
        BlindNode: there are none.
    """
    try:
        open_shards(uri)
        return
    except (DataError, OSError) as error:
        why = str(error)
    raise blind(uri, why)  # out here, where it does not stand for an error of the input


def read_block(positions: Sequence[int], plan: SamplePlan) -> pa.Table:
    """The views of stream positions as raw pixels (bytes, not floats and not tensors of Python objects)."""
    if isinstance(plan.view, TaskView):
        return plan.view.pack([read_task_sample(plan, position) for position in positions])
    images = np.empty((len(positions), *plan.crops.crop, 3), np.uint8)
    masks = np.empty((len(positions), *plan.crops.crop), np.uint8)
    for place, position in enumerate(positions):
        read_sample(plan, position, (images[place], masks[place]))
    return pa.table({"image": column(images), "mask": column(masks)})
