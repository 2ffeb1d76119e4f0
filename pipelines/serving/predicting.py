"""Sources to results: by threads of this process, or by Ray's actors; the bytes are the same."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np
import pyarrow as pa
import torch

from datasets.sample import DataError
from pipelines.base.machine import cores
from pipelines.serving.plan import Plan
from pipelines.serving.reading import frames, read_image
from pipelines.serving.results import (
    Results,
    areas_of,
    mask_png,
    overlay_jpeg,
    read_values,
    write_areas,
    write_bytes,
)
from pipelines.serving.sources import Source
from segmodels.files import FileError
from segmodels.loading import model_of

if TYPE_CHECKING:
    from pipelines.cluster.sizes import Sizes

ON_GPU = 4
"""Threads that decode and encode next to a GPU."""
BLOCKS = 4
"""Blocks of sources that each of Ray's actors gets, so that none waits long for the last."""
LARGEST_BLOCK = 16


TRAVELS = pa.schema(
    {"name": pa.string(), "mask": pa.binary(), "overlay": pa.binary(), "rows": pa.string(), "fault": pa.string()}
)
"""How results come from Ray's actors."""


@dataclass(frozen=True)
class Task:
    """A source, and the names of its frames that are there already."""

    source: Source
    there: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Made:
    """What became of an image: the files' bytes, and its rows of a table; or `fault`, why there are none."""

    name: str
    mask: bytes = b""
    overlay: bytes = b""
    rows: list[dict[str, Any]] = field(default_factory=list)
    fault: str = ""


class Maker(Protocol):
    """Who makes results of sources; `on_gpu`, whether by a GPU."""

    on_gpu: bool

    def make(self, task: Task) -> Iterator[Made]:
        """The results of a source, one image after the other; a fault of the source is one too."""


def made_of(
    task: Task, paint: Callable[[str, np.ndarray, bool], Made], overlays: bool, every: int = 1
) -> Iterator[Made]:
    """The results of a source, one image after the other; a fault of the source is one too.

    Args:
        task: the source.
        paint: gives the results of an image of this name, with an overlay or without.
        overlays: whether to draw them.
        every: of a video's frames, each so many-th is predicted.
    """
    source = task.source
    try:
        if source.kind != "video":
            yield paint(source.name, read_image(source), overlays)
            return
        for name, image in frames(source, every):
            if name not in task.there:
                yield paint(name, image, False)  # the frames' overlays become a film
    except (DataError, FileError, ValueError, cv2.error) as error:
        yield Made(source.name, fault=str(error))


class Painter:
    """Predicts sources with a model that it holds, each image by one CPU thread.

    How many threads share a convolution changes its rounding, and now and then a pixel's class: with one, any number of
    workers gives the same bytes.

    Args:
        plan: what to predict with.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.model = plan, model_of(plan.content, plan.path, **plan.options)
        self.on_gpu, self.gpu = guarded(self.model.device)

    def make(self, task: Task) -> Iterator[Made]:
        """The results of a source, see `made_of`."""
        return made_of(task, self.paint, self.plan.overlays, self.plan.every)

    def paint(self, name: str, image: np.ndarray, overlay: bool) -> Made:
        """The results of one image."""
        model, ids = self.model, self.plan.ids
        with self.gpu:
            mask = model.fill(image, np.empty(image.shape[:2], np.uint8))
        values = np.array(ids, np.uint8)[mask]
        return Made(
            name,
            mask_png(values, ids, model.palette),
            overlay_jpeg(image, mask, model.palette) if overlay else b"",
            areas_of(name, values, ids, model.classes),
        )


def guarded(device: torch.device) -> tuple[bool, contextlib.AbstractContextManager[Any]]:
    """Whether a device is a GPU, and what a thread holds while it computes: several images need several's memory."""
    on_gpu = device.type == "cuda"
    return on_gpu, threading.Lock() if on_gpu else contextlib.nullcontext()


def make_here(plan: Any, tasks: Sequence[Task], kind: Callable[[Any], Maker] = Painter) -> Iterator[Made]:
    """The results of all tasks, by threads of this process, in the order of the tasks.

    Args:
        plan: what to predict with.
        tasks: to do.
        kind: makes who predicts of the plan.
    """
    painter = kind(plan)
    count = ON_GPU if painter.on_gpu else cores()
    waiting: list[tuple[Future[Made | None], Iterator[Made], bool]] = []
    pool, left = ThreadPoolExecutor(count, "predict", initializer=torch.set_num_threads, initargs=(1,)), iter(tasks)
    try:
        while True:
            for task in itertools.islice(left, 2 * count - len(waiting)):
                stream = painter.make(task)
                waiting.append((pool.submit(next, stream, None), stream, task.source.kind == "video"))
            if not waiting:
                return
            future, stream, goes_on = waiting.pop(0)
            if (made := future.result()) is not None:
                yield made
                if goes_on:
                    waiting.insert(0, (pool.submit(next, stream, None), stream, True))
    finally:
        pool.shutdown(cancel_futures=True)


class Actor:
    """A worker of Ray Data's `map_batches`: positions in, results out.

    Args:
        plan: what to predict with; in Ray's store.
        tasks: of all workers; in Ray's store.
        kind: makes who predicts of the plan.
    """

    def __init__(self, plan: Any, tasks: Any, kind: Callable[[Any], Maker]) -> None:
        import ray

        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        self.painter, self.tasks = kind(ray.get(plan)), ray.get(tasks)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for position in batch["at"].to_pylist():
            for made in self.painter.make(self.tasks[position]):
                row = vars(made) | {"rows": json.dumps(made.rows)}
                yield pa.Table.from_pylist([row], TRAVELS)


def make_on_ray(
    plan: Any, tasks: Sequence[Task], sizes: Sizes, kind: Callable[[Any], Maker] = Painter
) -> Iterator[Made]:
    """The results of all tasks, by Ray Data's actors, in the order in which they come; arguments as of `make_here`.

    Results travel to this process, which writes them: nodes need not share the folder.
    """
    import ray

    from pipelines.cluster.nodes import AVOIDED, avoid

    size = max(1, min(LARGEST_BLOCK, len(tasks) // (BLOCKS * sizes.count)))
    blocks = [pa.table({"at": range(at, min(at + size, len(tasks)))}) for at in range(0, len(tasks), size)]
    data = ray.data.from_blocks(blocks).map_batches(
        Actor,
        fn_constructor_args=(ray.put(plan), ray.put(list(tasks)), kind),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(sizes.count, len(blocks))),
        num_cpus=sizes.cpus,
        num_gpus=sizes.gpus,
        label_selector=avoid(AVOIDED),
    )
    data.context.enable_progress_bars = False
    data.context.print_on_execution_start = False
    for row in data.iter_rows():
        yield Made(**row | {"rows": json.loads(row["rows"])})


def to_do(results: Results, sources: Iterable[Source], overlays: bool) -> tuple[list[Task], list[str]]:
    """What is still to predict, and the names of the masks that are there already."""
    tasks, there = [], []
    for source in sources:
        if source.kind == "video":
            folder = results.mask(source.name).with_suffix("")
            found = [f"{source.name}/{path.stem}" for path in sorted(folder.glob("[0-9]*.png"))]
            there += found
            tasks.append(Task(source, frozenset(found)))
        elif results.mask(source.name).exists() and (results.overlay(source.name).exists() or not overlays):
            there.append(source.name)
        else:
            tasks.append(Task(source))
    return tasks, there


def keep(results: Results, made: Iterable[Made], reach: Callable[[int], None]) -> tuple[list[Made], dict[str, Any]]:
    """Write the results as they come.

    Args:
        results: the folder.
        made: the results.
        reach: is told how many there are.

    Returns:
        Those that have a fault, and the areas of the others by name.
    """
    faults, areas = [], {}
    for done, one in enumerate(made, start=1):
        if one.fault:
            faults.append(one)
        else:
            if one.overlay:
                write_bytes(results.overlay(one.name), one.overlay)
            write_bytes(results.mask(one.name), one.mask)  # last: with it the image is done
            areas[one.name] = one.rows
        reach(done)
    return faults, areas


def tabulate(results: Results, areas: dict[str, Any], there: Iterable[str], plan: Plan) -> int:
    """Write the table of areas, of the masks that were there too; returns the number of images."""
    for name in there:
        areas[name] = areas_of(name, read_values(results.mask(name)), plan.ids, plan.content["classes"])
    write_areas(results, (row for name in sorted(areas) for row in areas[name]))
    return len(areas)
