"""How many workers and feeding tasks the machines carry, node by node."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipelines.base.errors import InputError
from pipelines.cluster.inside_ray import node_types
from pipelines.recipes.recipe import Workers

MOST_NODES = 256  # that are planned with, however many a cluster may grow to
MOST_TASKS = 16  # that decode for a worker: of each one's blocks a dozen wait in the object store
LEAST_CPUS = 0.05  # that a worker or task is given


@dataclass(frozen=True)
class Sizes:
    """What a run takes: `count` train workers, each with `cpus` and `gpus`, and `feed_tasks` tasks of `feed_cpus`.

    `counts` are the numbers of workers that it goes on with as nodes come and go; empty where it keeps to `count`.
    """

    count: int
    gpus: int
    cpus: float
    feed_tasks: int
    feed_cpus: float
    counts: tuple[int, ...] = ()

    def of(self, count: int) -> Sizes:
        """The same with so many workers, and no other number."""
        return replace(self, count=count, counts=())


@dataclass(frozen=True)
class Node:
    """What Ray may hand out of a node."""

    cpus: float
    gpus: int = 0

    def units(self, cpus: float) -> int:
        """Workers and tasks of so many CPUs each that it has room for."""
        return int(self.cpus / cpus + 1e-6)


def joins() -> bool:
    """Whether Ray is a cluster's, not this process' own."""
    return os.environ.get("RAY_ADDRESS", "") not in ("", "local")


def machine() -> tuple[int, int]:
    """Cores and GPUs of this machine."""
    import torch  # only here: a feeding task and Ray's controller need none

    return cores_here(), torch.cuda.device_count()


def cores_here() -> int:
    """Cores that this process may use."""
    return (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) or 1


def present(avoided: Container[str] = ()) -> list[Node]:
    """The cluster's nodes as they are, without those whose ids are given."""
    import ray

    return [node_of(node["Resources"]) for node in ray.nodes() if node["Alive"] and node["NodeID"] not in avoided]


def to_come() -> list[Node]:
    """The nodes that the cluster may grow by where it scales by itself, those with GPUs first."""
    most: Counter[Node] = Counter()
    for kind, count in node_types():
        most[node_of(kind)] += min(count, MOST_NODES)
    return sorted((most - Counter(present())).elements(), key=lambda node: (-node.gpus, -node.cpus))[:MOST_NODES]


def possible() -> list[Node]:
    """The cluster's nodes, with those that it may grow by."""
    return [*present(), *to_come()]


def node_of(resources: Any) -> Node:
    """A node by its resources."""
    return Node(float(resources.get("CPU") or 0), int(resources.get("GPU") or 0))


def totals(nodes: Iterable[Node] | None = None) -> dict[str, Any]:
    """CPUs and GPUs of nodes; by default those that the joined cluster has, or may grow to."""
    nodes = list(possible() if nodes is None else nodes)
    cpus = sum(node.cpus for node in nodes)
    return {"cores": int(cpus), "gpus": sum(node.gpus for node in nodes), "logical": cpus}


def size_workers(
    workers: Workers, *, cores: int, gpus: int, logical: float | None, nodes: Sequence[Node] | None = None
) -> Sizes:
    """Numbers of workers and tasks, from the recipe's wishes and what there is.

    Args:
        logical: CPUs that Ray hands out; None for a session still to be started, which gets what it needs.
        nodes: where these CPUs and GPUs are; by default all on one.

    Raises:
        InputError: it cannot fit.
    """
    gpu = workers.gpus if workers.gpus is not None else int(gpus > 0)
    count = workers.number if workers.number is not None else (gpus if gpu else 1)
    if gpu and workers.number is None and not gpus:
        raise InputError(
            "workers.gpus = 1: the cluster has no GPU, and says that it can add none. Add nodes with GPUs, or "
            "train on CPUs with workers.gpus=0"
        )
    if gpu and max(count, 1) > gpus:
        raise InputError(
            f"workers.count = {count} with one GPU each: the cluster has {gpus} GPU(s). "
            f"Lower workers.count, add nodes, or train on CPUs with workers.gpus=0."
        )
    if not gpu and count > cores:
        raise InputError(f"workers.count = {count} on CPUs: the cluster has {cores} core(s). Lower workers.count.")
    tasks = workers.feed_tasks or most_tasks(cores, count)
    if logical is None:
        return Sizes(count, gpu, 1.0, tasks, 1.0)
    return placed(Sizes(count, gpu, 1.0, tasks, 1.0), nodes or [Node(logical, gpus)], fixed=bool(workers.feed_tasks))


def largest(workers: Workers, counts: Sequence[int], **there: Any) -> Sizes | None:
    """The size with the most workers, of several numbers, that fits; None where not even the fewest do.

    Args:
        there: as `size_workers` takes it.
    """
    for count in reversed(counts):
        with contextlib.suppress(InputError):
            return size_workers(replace(workers, count=count), **there)
    return None


def sized(workers: Workers, counts: Sequence[int], **there: Any) -> Sizes:
    """The size of a run on one machine: of a range the most workers that fit.

    Args:
        counts: the numbers of workers that the recipe's range allows; empty where it has none.
        there: as `size_workers` takes it.

    Raises:
        InputError: not even the fewest fit.
    """
    fewest = replace(workers, count=counts[0]) if counts else workers
    return largest(workers, counts, **there) or size_workers(fewest, **there)  # the latter says what is missing


def placed(sizes: Sizes, nodes: Sequence[Node], copies: int = 1, fixed: bool = False) -> Sizes:
    """The same on these nodes: with fewer feeding tasks where some find no place, then with parts of a CPU for each.

    Ray's CPUs are bookkeeping: on small machines workers and tasks share the cores.

    Args:
        copies: runs of that size at the same time.
        fixed: whether the recipe names the number of feeding tasks.

    Raises:
        InputError: they find no place.
    """
    while not fixed and sizes.feed_tasks > 1 and not room_for(sizes, nodes, copies):
        sizes = replace(sizes, feed_tasks=sizes.feed_tasks - 1)
    needed = units(sizes) * copies
    if sizes.gpus and fixed and not room_for(sizes, nodes, copies):
        raise InputError(
            f"{sizes.count} workers with {sizes.feed_tasks} feeding tasks each and 1 spare need {needed} CPUs, the "
            f"cluster has {in_words(nodes)}. Lower workers.feed_tasks or workers.count: without spare CPUs Ray waits "
            "for ever."
        )
    parts = {1.0} | {int(node.cpus / n * 100) / 100 for node in set(nodes) for n in range(1, needed + 1)}
    for part in sorted((part for part in parts if LEAST_CPUS <= part <= 1), reverse=True):
        if room_for(tried := replace(sizes, cpus=part, feed_cpus=part), nodes, copies):
            return tried
    raise InputError(
        f"{in_short(sizes)} cannot be placed: the cluster has {in_words(nodes)}, and a worker needs a part of a CPU "
        f"{'next to its GPU' if sizes.gpus else 'of a node'}. Lower workers.count or workers.feed_tasks, or add nodes."
    )


def fed(sizes: Sizes, nodes: Sequence[Node]) -> Sizes:
    """The same with more feeding tasks, as many as find a place on these nodes."""
    most = most_tasks(totals(nodes)["cores"], sizes.count)
    more = (replace(sizes, feed_tasks=tasks) for tasks in range(most, sizes.feed_tasks, -1))
    return next((tried for tried in more if room_for(tried, nodes)), sizes)


def most_tasks(cores: int, count: int) -> int:
    """Feeding tasks of each of so many workers, where there is room for them."""
    return max(1, min(MOST_TASKS, (cores - count) // max(1, count)))


def units(sizes: Sizes, spare: int = 1) -> int:
    """Workers and tasks of a run, and a spare place for what else it starts."""
    return max(1, sizes.count) * (1 + sizes.feed_tasks) + spare


def room_for(sizes: Sizes, nodes: Sequence[Node], copies: int = 1, spare: int = 1) -> bool:
    """Whether all find a place, each on one node; workers and tasks are of one size, so that any order of them fits."""
    places = [node.units(sizes.cpus) for node in nodes]
    hosts = sum(min(place, node.gpus) if sizes.gpus else place for place, node in zip(places, nodes, strict=True))
    return sum(places) >= units(sizes, spare) * copies and hosts >= sizes.count * copies


def several(count: int, thing: str) -> str:
    """A number of things, for people."""
    return f"{count} {thing}" + ("s" if count != 1 else "")


def listed(counts: Sequence[int]) -> str:
    """Several numbers, for people."""
    *first, last = map(str, counts)
    return f"{', '.join(first)} or {last}" if first else last


def in_short(sizes: Sizes) -> str:
    """Workers and tasks, for people."""
    gpu = " with one GPU each" if sizes.gpus else ""
    tasks = several(max(1, sizes.count) * sizes.feed_tasks, "feeding task")
    if len(sizes.counts) > 1:
        gpu += f" ({listed(sizes.counts)} as nodes come and go)"
    return f"{several(sizes.count, 'worker')}{gpu} and {tasks}" if sizes.count else tasks


def in_words(nodes: Sequence[Node]) -> str:
    """What nodes have, for people."""
    kinds = Counter(nodes)
    told = [
        f"{several(count, 'node')} of {node.cpus:g} CPU(s)" + (f" and {node.gpus} GPU(s)" if node.gpus else "")
        for node, count in sorted(kinds.items(), key=lambda pair: (-pair[0].gpus, -pair[0].cpus))
    ]
    return ", ".join(told[:4]) + (f" and {len(told) - 4} other kinds" if len(told) > 4 else "") or "no node"


def threads(sizes: Sizes) -> int:
    """CPU threads of a worker: OMP_NUM_THREADS, else 1 on GPUs, where the loader needs the cores, else a fair share."""
    if given := os.environ.get("OMP_NUM_THREADS", ""):
        return max(1, int(given.split(",")[0]))
    return fair_threads(sizes, max(1, sizes.count), cores_here())


def fair_threads(sizes: Sizes, workers: int, cores: int) -> int:
    """CPU threads of each of so many workers of a machine."""
    return 1 if sizes.gpus else max(1, cores // max(1, workers))
