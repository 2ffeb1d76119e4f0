"""A worker that takes batches from both feeds in turn and notes when each came; and its notes as rates and waits."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.cluster.sizes import Sizes
    from pipelines.feed.plan import SamplePlan

KINDS = ("ray", "torch")


def consume(plan: SamplePlan, sizes: Sizes, repeats: int, pace: float, folder: Path) -> None:
    """A worker: take all batches through each kind in turn, note when each came; written to `folder`."""
    import ray.train
    import torch
    import torch.distributed as dist

    entered, rank = time.time(), ray.train.get_context().get_world_rank()
    torch.set_num_threads(1)
    plan = dataclasses.replace(plan, rank=rank)
    rounds = []
    for turn in range(repeats):
        for kind in KINDS:
            if dist.is_initialized():
                dist.barrier()
            rounds.append({"kind": kind, "turn": turn} | drain(plan, kind, sizes, pace))
    (folder / f"rank-{rank}.json").write_text(json.dumps({"entered": entered, "rounds": rounds}))


def drain(plan: SamplePlan, kind: str, sizes: Sizes, pace: float) -> dict[str, Any]:
    """All batches of a plan; returns the seconds at which each was asked for and came, from the call on."""
    from pipelines.feed.batches import train_batches

    began = time.monotonic()
    feed = train_batches(plan, kind, sizes.feed_tasks, sizes.feed_cpus)
    asked, came = [], []
    while True:
        asked.append(time.monotonic() - began)
        if next(feed, None) is None:
            break
        came.append(time.monotonic() - began)
        if len(came) == 1:
            first_at = time.time()
        time.sleep(pace)
    return {"asked": asked[: len(came)], "came": came, "first_at": first_at}


def merge(ranks: list[dict[str, Any]], plan: SamplePlan, tasks: int) -> list[dict[str, Any]]:
    """Rounds of all workers, each with so many tasks, as one: a step is there when the slowest worker has it.

    The rate is that of the steady part, see `steady`.
    """
    merged, (first, last) = [], steady(plan, tasks)
    epochs = [step * plan.batch // plan.rows for step in range(plan.steps)]
    borders = [step for step in range(1, plan.steps) if epochs[step] > epochs[step - 1]]
    for parts in zip(*(rank["rounds"] for rank in ranks), strict=True):
        came = [max(times) for times in zip(*(part["came"] for part in parts), strict=True)]
        waits = [max(times) for times in zip(*(waits_of(part) for part in parts), strict=True)]
        merged.append({
            "kind": parts[0]["kind"],
            "images_per_s": (last - first) * plan.batch / (came[last] - came[first]),
            "first_s": came[0],
            "gap_s": max(waits[1:]),
            "border_s": max((waits[step] for step in borders), default=0.0),
        })  # fmt: skip
    return merged


def steady(plan: SamplePlan, tasks: int) -> tuple[int, int]:
    """First and last step of the part whose rate counts: in the second half, whole turns of all tasks.

    What was decoded ahead of the first batch is used up by the second half. And Ray's batches come a block at a time,
    with a pause between tasks: counted from any other step, a begun task's would cost nothing.
    """
    turn = turn_steps(plan, tasks)
    return -(-(plan.steps // 2) // turn) * turn, (plan.steps - 1) // turn * turn


def turn_steps(plan: SamplePlan, tasks: int) -> int:
    """Steps in which each of a worker's tasks is read once."""
    from pipelines.feed.batches import task_steps

    return tasks * task_steps(plan, tasks)


def waits_of(part: dict[str, Any]) -> list[float]:
    """Seconds that a worker waited for each batch."""
    return [came - asked for asked, came in zip(part["asked"], part["came"], strict=True)]
