"""How many workers and feeding tasks the machines at hand carry."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from pipelines.base.errors import InputError
from pipelines.cluster.inside_ray import most_resources
from pipelines.recipes.recipe import Workers


@dataclass(frozen=True)
class Sizes:
    """What a run takes: `count` train workers, each with `cpus` and `gpus`, and `feed_tasks` tasks of `feed_cpus`."""

    count: int
    gpus: int
    cpus: float
    feed_tasks: int
    feed_cpus: float


def joins() -> bool:
    """Whether Ray is a cluster's, not this process' own."""
    return bool(os.environ.get("RAY_ADDRESS"))


def machine() -> tuple[int, int]:
    """Cores and GPUs of this machine."""
    import torch  # only here: a feeding task and Ray's controller need none

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cores or 1, torch.cuda.device_count()


def totals() -> dict[str, Any]:
    """CPUs and GPUs that the joined cluster has, or may grow to where it scales by itself."""
    import ray

    now, most = ray.cluster_resources(), most_resources()
    cpus, gpus = (max(now.get(k, 0.0), float(most.get(k) or 0.0)) for k in ("CPU", "GPU"))
    return {"cores": int(cpus), "gpus": int(gpus), "logical": cpus}


def size_workers(workers: Workers, *, cores: int, gpus: int, logical: float | None) -> Sizes:
    """Numbers of workers and tasks, from the recipe's wishes and what there is.

    Args:
        logical: CPUs that Ray hands out; None for a session still to be started, which gets what it needs.

    Raises:
        InputError: it cannot fit.
    """
    gpu = workers.gpus if workers.gpus is not None else int(gpus > 0)
    count = workers.count if workers.count is not None else (gpus if gpu else 1)
    if gpu and max(count, 1) > gpus:
        raise InputError(
            f"workers.count = {count} with one GPU each: the cluster has {gpus} GPU(s). "
            f"Lower workers.count, add nodes, or train on CPUs with workers.gpus=0."
        )
    if not gpu and count > cores:
        raise InputError(f"workers.count = {count} on CPUs: the cluster has {cores} core(s). Lower workers.count.")
    share = max(1, count)
    tasks = workers.feed_tasks or max(1, min(8, (cores - count) // share))
    needed = share * (1 + tasks) + 1
    if logical is None or logical >= needed:
        return Sizes(count, gpu, 1.0, tasks, 1.0)
    if gpu and workers.feed_tasks:
        raise InputError(
            f"{count} workers with {tasks} feeding tasks each and 1 spare need {needed} CPUs, the cluster has "
            f"{logical:g}. Lower workers.feed_tasks or workers.count: without spare CPUs Ray waits for ever."
        )
    # Ray's CPUs are bookkeeping: on a small machine workers and tasks share the cores.
    fraction = int(logical / needed * 100) / 100
    return Sizes(count, gpu, fraction, tasks, fraction)


def threads(sizes: Sizes) -> int:
    """CPU threads of a worker: OMP_NUM_THREADS, else 1 on GPUs, where the loader needs the cores, else a fair share."""
    if given := os.environ.get("OMP_NUM_THREADS", ""):
        return max(1, int(given.split(",")[0]))
    cores, _ = machine()
    return 1 if sizes.gpus else max(1, cores // max(1, sizes.count))
