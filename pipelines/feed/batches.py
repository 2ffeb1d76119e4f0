"""Shard rows -> batches: Ray Data (or a torch DataLoader) for training, read-ahead threads for validation.

Which rows a batch holds is the plan's business (`plan.py`); here they travel. Ray's tasks import no torch: a process
that decodes is up in half the time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.util import get_temp_dir
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipelines.cluster.folder import short_sockets
from pipelines.cluster.inside_ray import FEED, end_data_threads, hook
from pipelines.cluster.nodes import AVOIDED, avoid
from pipelines.feed.batch import Batch, make_batch
from pipelines.feed.plan import SamplePlan, read_blocks, read_sample

BLOCK_ROWS = 48  # samples in a Ray block: smaller ones drown in bookkeeping, for larger ones batches wait longer
LONE_ROWS = 2048  # samples that a worker's only task reads: between two, its process waits for Ray Data to look at it
TASK_ROWS = 256  # and that each of several reads: the blocks of all but the first wait in the store for their turn
ENDING_S = 10.0  # seconds that Ray Data's threads get
SPAN_TASKS = 512  # tasks of one Ray Data execution, so that its bookkeeping stays small in a run of weeks


def train_batches(plan: SamplePlan, kind: str, tasks: int, task_cpus: float = 1.0) -> Generator[Batch]:
    """This worker's batches from step `plan.start` to the end of the stage; who leaves earlier closes it.

    Args:
        plan: the plan of the stage.
        kind: `ray` (Ray Data) or `torch` (a DataLoader over the same plan, the yardstick); bit-identical.
        tasks: decoding tasks of this worker; 0 decodes in this process (torch only).
        task_cpus: logical CPUs that Ray books for a task.
    """
    return ray_batches(plan, tasks, task_cpus) if kind == "ray" else torch_batches(plan, tasks)


@contextlib.contextmanager
def under_way(batches: Generator[Batch]) -> Iterator[Iterator[Batch]]:
    """The same batches, the first of them asked for at once, in a thread: tasks start while the model is validated.

    They are closed with the body, however many of them it took.
    """
    with contextlib.closing(batches), ThreadPoolExecutor(1, "first-batch") as pool:
        first = pool.submit(next, batches, None)

        def all_of_them() -> Iterator[Batch]:
            batch = first.result()
            if batch is not None:
                yield batch
                yield from batches

        yield all_of_them()


def block_steps(plan: SamplePlan) -> int:
    """Steps whose batches are in one block."""
    return max(1, BLOCK_ROWS // plan.share)


def task_steps(plan: SamplePlan, tasks: int) -> int:
    """Steps whose batches one of so many tasks of a worker reads: a whole number of blocks."""
    rows = LONE_ROWS if tasks == 1 else TASK_ROWS
    return max(1, rows // (block_steps(plan) * plan.share)) * block_steps(plan)


def ray_batches(plan: SamplePlan, tasks: int, task_cpus: float) -> Generator[Batch]:
    """Batches through Ray Data, which carries steps to the tasks and blocks of bytes back, in order."""
    try:
        yield from executions(plan, tasks, task_cpus)
    finally:
        end_data_threads(ENDING_S)


def executions(plan: SamplePlan, tasks: int, task_cpus: float) -> Generator[Batch]:
    """The batches, by one Ray Data execution after the other."""
    import ray

    per_block, per_task = block_steps(plan), task_steps(plan, tasks)
    starts = range(plan.start, plan.steps, per_task)
    for first in range(0, len(starts), SPAN_TASKS):
        parts = [
            pa.table({"step": range(start, min(start + per_task, plan.steps))})
            for start in starts[first : first + SPAN_TASKS]
        ]
        data = ray.data.from_blocks(parts).map_batches(
            read_blocks,
            fn_kwargs={"plan": plan, "per_block": per_block},
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=task_cpus,
            runtime_env={"env_vars": hook(FEED)},
            compute=ray.data.TaskPoolStrategy(size=tasks),
            label_selector=avoid(AVOIDED),
        )
        context = data.context  # its own: other data of this process keep theirs
        context.execution_options.preserve_order = True  # without it nothing is reproducible
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        # Ray hands on what a task yields when it is more than that, and cuts it when it is half as much again
        context.target_max_block_size = per_block * plan.share * plan.view.crop[0] * plan.view.crop[1] * 4 * 3 // 4
        for table in data.iter_batches(batch_size=plan.share, batch_format="pyarrow", prefetch_batches=4):
            yield unpack(table, plan)


def unpack(table: pa.Table, plan: SamplePlan) -> Batch:
    """A batch over the very bytes of the Arrow table."""
    height, width = plan.view.crop
    return make_batch(
        flat(table["image"]).reshape(-1, height, width, 3), flat(table["mask"]).reshape(-1, height, width)
    )


def flat(column: pa.ChunkedArray) -> np.ndarray:
    """All bytes of a binary column, writable as torch wants them."""
    chunk = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if isinstance(chunk, pa.ChunkedArray):
        chunk = chunk.chunk(0)
    offsets = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
    return np.frombuffer(chunk.buffers()[2], np.uint8)[offsets[0] : offsets[-1]].copy()


class Positions(torch.utils.data.Dataset):
    """The stream as a map-style dataset for the torch DataLoader."""

    def __init__(self, plan: SamplePlan) -> None:
        self.plan = plan

    def __getitem__(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        return read_sample(self.plan, position)


class Steps(torch.utils.data.Sampler[range]):
    """The stream positions of each step that is left."""

    def __init__(self, plan: SamplePlan) -> None:
        self.plan = plan

    def __len__(self) -> int:
        return self.plan.steps - self.plan.start

    def __iter__(self) -> Iterator[range]:
        return map(self.plan.positions, range(self.plan.start, self.plan.steps))


def collate(samples: list[tuple[np.ndarray, np.ndarray]]) -> tuple[Tensor, Tensor]:
    """Stack to image (B, H, W, 3) and mask (B, H, W)."""
    images, masks = zip(*samples, strict=True)
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(masks))


def torch_batches(plan: SamplePlan, tasks: int) -> Generator[Batch]:
    """The same batches through a torch DataLoader."""
    options: dict[str, Any] = {"multiprocessing_context": "forkserver", "prefetch_factor": 4} if tasks else {}
    with short_sockets():
        get_temp_dir()  # chosen once, by the first who asks
    loader = torch.utils.data.DataLoader(
        Positions(plan),
        batch_sampler=Steps(plan),
        collate_fn=collate,
        num_workers=tasks,
        **options,
    )
    for images, masks in loader:
        yield Batch(images.permute(0, 3, 1, 2), masks)
