"""Shard rows -> batches: Ray Data (or a torch DataLoader) for training, read-ahead threads for validation.

Which rows a batch holds is the plan's business (`plan.py`); here they travel. Ray's tasks import no torch: a process
that decodes is up in half the time.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Generator, Iterator
from multiprocessing.util import get_temp_dir
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from datasets.raw_column import flat
from datasets.tasks.view import TaskView
from datasets.transforms import TrainView
from pipelines.cluster.folder import short_sockets
from pipelines.cluster.inside_ray import FEED, end_data_threads, hook, near
from pipelines.cluster.nodes import AVOIDED, avoid
from pipelines.feed.batch import Batch, Target, as_tensors, make_batch
from pipelines.feed.plan import SamplePlan, canvas_of, read_blocks, read_sample, read_task_sample

Read = Callable[[pa.Table, SamplePlan, int], Iterator[pa.Table]]
BLOCK_ROWS = 48  # samples in a Ray block: smaller ones drown in bookkeeping, for larger ones batches wait longer
LONE_ROWS = 2048  # samples that a worker's only task reads: between two, its process waits for Ray Data to look at it
TASK_ROWS = 256  # and that each of several reads: the blocks of all but the first wait in the store for their turn
ENDING_S = 10.0  # seconds that Ray Data's threads get
TURN_S = 0.05  # least seconds from one turn of Ray Data's loop to the next
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


def block_steps(plan: SamplePlan) -> int:
    """Steps whose batches are in one block."""
    return max(1, BLOCK_ROWS // plan.share)


def task_steps(plan: SamplePlan, tasks: int) -> int:
    """Steps whose batches one of so many tasks of a worker reads: a whole number of blocks."""
    rows = LONE_ROWS if tasks == 1 else TASK_ROWS
    return max(1, rows // (block_steps(plan) * plan.share)) * block_steps(plan)


def ray_batches(plan: SamplePlan, tasks: int, task_cpus: float, read: Read | None = None) -> Generator[Batch]:
    """Batches through Ray Data, which carries steps to the tasks and blocks of bytes back, in order.

    Args:
        plan, tasks, task_cpus: as of `train_batches`.
        read: makes the blocks of a task; None for `read_blocks`.
    """
    try:
        yield from executions(plan, tasks, task_cpus, read or read_blocks)
    finally:
        end_data_threads(ENDING_S)


def executions(plan: SamplePlan, tasks: int, task_cpus: float, read: Read) -> Generator[Batch]:
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
            read,
            fn_kwargs={"plan": plan, "per_block": per_block},
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=task_cpus,
            runtime_env={"env_vars": hook(FEED)},
            compute=ray.data.TaskPoolStrategy(size=tasks),
            label_selector=avoid(AVOIDED),
            **near(),
        )
        context = data.context  # its own: other data of this process keep theirs
        context.execution_options.preserve_order = True  # without it nothing is reproducible
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, Unhurried]
        # Ray hands on what a task yields when it is more than that, and cuts it when it is half as much again
        height, width = canvas_of(plan, plan.start)
        context.target_max_block_size = per_block * plan.share * height * width * 4 * 3 // 4
        for table in data.iter_batches(batch_size=plan.share, batch_format="pyarrow", prefetch_batches=4):
            yield unpack(table, plan)


class Unhurried:
    """A callback of Ray Data that paces its loop, a thread of the training process.

    While blocks are ready for which the store's share has no room, which is always so where tasks are faster than the
    training, Ray 2.60's loop turns without a pause: it held the interpreter for half of the time.
    """

    def __init__(self) -> None:
        self.turned = 0.0

    def before_execution_starts(self, executor: Any) -> None:
        """Nothing."""

    def on_execution_step(self, executor: Any) -> None:
        """Wait until the next turn is due."""
        time.sleep(max(0.0, self.turned + TURN_S - time.monotonic()))
        self.turned = time.monotonic()

    def after_execution_succeeds(self, executor: Any) -> None:
        """Nothing."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Nothing."""


def unpack(table: pa.Table, plan: SamplePlan) -> Batch:
    """A batch over the very bytes of the Arrow table."""
    if isinstance(plan.view, TaskView):
        return make_batch(*plan.view.unpack(table))
    height, width = plan.view.crop
    return make_batch(
        flat(table["image"]).reshape(-1, height, width, 3), flat(table["mask"]).reshape(-1, height, width)
    )


class Positions(torch.utils.data.Dataset):
    """The stream as a map-style dataset for the torch DataLoader."""

    def __init__(self, plan: SamplePlan) -> None:
        self.plan = plan

    def __getitem__(self, position: int) -> tuple[np.ndarray, Any]:
        task = isinstance(self.plan.view, TaskView)
        return (read_task_sample if task else read_sample)(self.plan, position)


class Steps(torch.utils.data.Sampler[range]):
    """The stream positions of each step that is left."""

    def __init__(self, plan: SamplePlan) -> None:
        self.plan = plan

    def __len__(self) -> int:
        return self.plan.steps - self.plan.start

    def __iter__(self) -> Iterator[range]:
        return map(self.plan.positions, range(self.plan.start, self.plan.steps))


def collate(view: TrainView | TaskView, samples: list[tuple[np.ndarray, Any]]) -> tuple[Tensor, Target]:
    """Stack to image (B, H, W, 3) and target."""
    if isinstance(view, TaskView):
        pixels, target = view.unpack(view.pack(samples))
        return torch.from_numpy(pixels), as_tensors(target)
    images, masks = zip(*samples, strict=True)
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(masks))


def torch_batches(plan: SamplePlan, tasks: int) -> Generator[Batch]:
    """The same batches through a torch DataLoader."""
    options: dict[str, Any] = {"multiprocessing_context": "forkserver", "prefetch_factor": 4} if tasks else {}
    with short_sockets():
        get_temp_dir()  # chosen once, by the first who asks
    loader = torch.utils.data.DataLoader(
        Positions(plan),
        batch_sampler=Steps(plan),  # type: ignore[arg-type]  # ranges do as lists
        collate_fn=functools.partial(collate, plan.view),
        num_workers=tasks,
        **options,
    )
    for images, target in loader:
        yield Batch(images.permute(0, 3, 1, 2), target)
