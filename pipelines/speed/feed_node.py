"""What a node's feed gives so many consumers at once, and what an image costs a core, part by part."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from pipelines.cluster.sizes import Sizes
    from pipelines.feed.plan import SamplePlan
    from pipelines.recipes.recipe import Recipe
    from pipelines.speed.report import Report

ROWS = 64  # whose parts are timed, at most
TURNS = 3  # of all tasks of a consumer: the rate is that of the last two


def node_report(args: argparse.Namespace, recipe: Recipe, uri: str) -> Report:
    """The parts on one core, then all consumers at once, on views and on blank pixels in turn."""
    from pipelines.base.machine import cores
    from pipelines.speed.report import Report, spread

    plan = plan_of(recipe, uri, args.consumers)
    parts = parts_of(plan, args.repeats)
    tasks = recipe.workers.feed_tasks or max(1, cores() // args.consumers)
    plan = dataclasses.replace(plan, steps=steps_of(plan, tasks))
    rates = node_rates(recipe, plan, args.consumers, tasks, args.repeats)
    rows = [[name, spread(ms, 2), spread([1e3 / m for m in ms], 0)] for name, ms in parts.items()]
    image = median(parts["read"]) + median(parts["decode"]) + median(parts["transform"])
    rows.append(["read, decode, transform: one core", f"{image:.2f}", f"{1e3 / image:.0f}"])
    for name, found in rates.items():
        rows.append([name, spread([1e3 / rate for rate in found], 2), spread(found, 0)])
    height, width = recipe.view.crop
    moved = [rate * height * width * 4 / 2**30 for rate in rates["transport alone: the node"]]
    notes = [
        f"{uri}, crop {height}x{width}, {args.consumers} consumers of {plan.share} images a step with {tasks} task(s) "
        f"each, {cores()} cores; parts: medians over {min(ROWS, plan.rows)} rows on one core, {args.repeats} rounds",
        "decode of a PNG: as it comes; once its pixels are kept on the machine the row `kept pixels` takes its "
        "place, and in the rounds of the node all but the first find them",
        f"transport alone: blocks of blank pixels, from the task through the object store to a copy in the "
        f"consumer, {spread(moved, 2)} GiB/s",
        f"{cores()} cores that only read, decode and transform would give {cores() * 1e3 / image:.0f} images/s",
    ]
    return Report("A node's feed, part by part", ["part", "ms an image", "images/s"], rows, notes,
                  {"parts": parts, "rates": rates})  # fmt: skip


def plan_of(recipe: Recipe, uri: str, consumers: int) -> SamplePlan:
    """The plan of consumers that share batches."""
    from datasets.transforms import TrainView
    from pipelines.feed.plan import SamplePlan, open_shards

    rows = len(open_shards(uri))
    return SamplePlan(uri, rows, TrainView(**dataclasses.asdict(recipe.view)), 0, recipe.batch, 1, world=consumers)


def steps_of(plan: SamplePlan, tasks: int) -> int:
    """Steps in which each task of a consumer is read `TURNS` times."""
    from pipelines.speed.drain import turn_steps

    return TURNS * turn_steps(plan, tasks)


def parts_of(plan: SamplePlan, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of one core for each part of an image, a median over rows in each round."""
    import cv2
    import numpy as np

    from datasets.sample import decode_image, decode_mask
    from pipelines.feed.plan import open_shards

    cv2.setNumThreads(1)
    shards, found = open_shards(plan.shards), dict[str, list[float]]()
    rows = range(min(ROWS, len(shards)))
    out = np.empty((*plan.crops.crop, 3), np.uint8), np.empty(plan.crops.crop, np.uint8)
    for turn in range(repeats + 1):  # the first maps the files
        times: dict[str, list[float]] = {"read": [], "decode": [], "transform": []}
        for row in rows:
            began = time.perf_counter()
            image, mask = shards.encoded(row)
            read = time.perf_counter()
            pixels, labels = decode_image(image), decode_mask(mask or b"")
            decoded = time.perf_counter()
            plan.crops(pixels, labels, turn * len(rows) + row, out)
            ended = time.perf_counter()
            for name, seconds in zip(times, (read - began, decoded - read, ended - decoded), strict=True):
                times[name].append(1e3 * seconds)
        times |= kept_parts(plan, rows, turn, out)
        for name, ms in times.items() if turn else ():
            found.setdefault(name, []).append(median(ms))
    return found


def kept_parts(plan: SamplePlan, rows: range, turn: int, out: Any) -> dict[str, list[float]]:
    """The same of rows whose pixels are kept: all of `sample`, with the transform that reads the mapped pixels."""
    from pipelines.feed.plan import open_shards

    shards, times = open_shards(plan.shards), []
    for row in rows:
        shards.sample(row)  # keeps them
        began = time.perf_counter()
        pixels, labels = shards.sample(row)
        if pixels.flags.writeable:  # decoded again: not kept
            return {}
        plan.crops(pixels, labels, turn * len(rows) + row, out)
        times.append(1e3 * (time.perf_counter() - began))
    return {"kept pixels: read and transform": times}


def node_rates(recipe: Recipe, plan: SamplePlan, consumers: int, tasks: int, repeats: int) -> dict[str, list[float]]:
    """Images/s of all consumers together, in each round on views and on blank pixels."""
    from pipelines.cluster.session import ray_cluster
    from pipelines.driver.run import store_bytes
    from pipelines.feed.plan import read_blocks
    from pipelines.recipes.recipe import Workers

    whole = Workers(count=1, gpus=0, feed_tasks=tasks)

    def store(sizes: Sizes) -> int:
        return consumers * store_bytes(recipe, sizes)

    kinds = {"all of it: the node": read_blocks, "transport alone: the node": blank_blocks}
    found: dict[str, list[float]] = {name: [] for name in kinds}
    with ray_cluster(whole, store):
        for _ in range(repeats):
            for name, read in kinds.items():
                found[name].append(together(plan, consumers, tasks, read))
    return found


def together(plan: SamplePlan, consumers: int, tasks: int, read: Callable[..., Iterator[pa.Table]]) -> float:
    """Images/s of consumers that start at once, from the first turn's end of the last to the end of the first."""
    import ray

    cpus = int(5000 / (consumers * tasks)) / 10_000  # Ray counts in ten-thousandths; here all tasks are to run
    task = ray.remote(num_cpus=0, max_retries=0)(consume)
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "steps"
        counts.write_bytes(bytes(8 * consumers))
        shares = [dataclasses.replace(plan, rank=rank) for rank in range(consumers)]
        came = ray.get([task.remote(share, tasks, cpus, read, counts) for share in shares])
    begun = max(times[plan.steps // TURNS] for times in came)
    ended = min(times[-1] for times in came)  # after `begun`: nobody is further ahead than a turn
    steps = sum(sum(begun < moment <= ended for moment in times) for times in came)
    return steps * plan.share / (ended - begun)


def consume(
    plan: SamplePlan, tasks: int, cpus: float, read: Callable[..., Iterator[pa.Table]], counts: Path
) -> list[float]:
    """A consumer: when each batch had been copied, as to page-locked memory that is used again.

    Args:
        counts: a file of a 64-bit integer for each consumer, its steps so far. None goes on while it is a turn ahead
            of the last one (workers of a training wait for each other at every step), so that all are at work together.
    """
    import numpy as np
    import torch

    from pipelines.feed.batches import ray_batches

    torch.set_num_threads(1)
    height, width = plan.crops.crop
    images, masks = (torch.empty(plan.share, height, width, *more, dtype=torch.uint8) for more in ((3,), ()))
    steps = np.memmap(counts, np.int64, "r+")
    came = []
    for batch in ray_batches(plan, tasks, cpus, read):
        images.copy_(batch.image.permute(0, 2, 3, 1))
        masks.copy_(batch.masks)
        came.append(time.time())
        steps[plan.rank] = len(came)
        while len(came) - steps.min() >= plan.steps // TURNS:
            time.sleep(0.005)
    return came


def blank_blocks(table: pa.Table, plan: SamplePlan, per_block: int) -> Iterator[pa.Table]:
    """As `read_blocks`, of pixels that nobody reads or decodes."""
    import numpy as np
    import pyarrow as pa

    from datasets.raw_column import column

    steps = len(table)
    for first in range(0, steps, per_block):
        rows = plan.share * len(range(first, min(first + per_block, steps)))
        images, masks = (np.zeros((rows, *plan.crops.crop, *more), np.uint8) for more in ((3,), ()))
        yield pa.table({"image": column(images), "mask": column(masks)})
