"""How large a run is on the joined cluster, and the nodes that it asks for where a cluster grows by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipelines.base.errors import InputError
from pipelines.cluster.sizes import (
    Node,
    Sizes,
    in_short,
    in_words,
    largest,
    present,
    room_for,
    size_workers,
    to_come,
    totals,
)
from pipelines.cluster.waiting import ask_for, limit, too_few
from pipelines.recipes.recipe import Workers


def settled(workers: Workers, counts: Sequence[int] = ()) -> Sizes:
    """The size of a run on the cluster; nodes that it may grow by are asked for, and waited for.

    Args:
        counts: the numbers of workers that the recipe's range allows: it begins with the most that fit now.

    Raises:
        InputError: it can never fit.
        SetupError: it does not fit in time.
    """
    now, more = present(), to_come()
    if counts:
        return ranging(workers, counts, now, more)
    sizes = planned(workers, now, more)
    if not sizes.count or room_for(sizes, now):
        return told(sizes, workers, now)
    if ask_for(sizes, limit(workers), say):
        return told(sizes, workers, present())
    fewer = fitting(workers, present())
    if workers.number is not None or fewer is None or (sizes.gpus and not fewer.gpus):
        raise too_few(sizes, limit(workers))
    say(f"{in_short(sizes)} would be as many as the cluster may grow to; {in_short(fewer)} fit now, and are taken")
    return told(fewer, workers, present())


def ranging(workers: Workers, counts: Sequence[int], now: list[Node], more: list[Node]) -> Sizes:
    """The size of a run that nodes may join and leave; where not even the fewest workers fit, these are waited for.

    Unless the recipe gives their number, it counts on one feeding task for each worker; they start as many as then fit.

    Raises:
        InputError: the fewest can never fit.
        SetupError: they do not fit in time.
    """
    gpu = workers.gpus if workers.gpus is not None else int(totals([*now, *more])["gpus"] > 0)
    workers = replace(workers, gpus=gpu)  # type: ignore[arg-type]
    sizes = largest(workers, counts, **totals(now), nodes=now) or settled(replace(workers, count=counts[0]))
    sizes = replace(sizes, counts=tuple(counts), feed_tasks=workers.feed_tasks or 1)
    say(f"{in_short(sizes)}; the cluster has {in_words(present())}")
    return sizes


def planned(workers: Workers, now: list[Node], more: list[Node]) -> Sizes:
    """The size of a run on the nodes that are there, and on as few more as it needs.

    Raises:
        InputError: it does not fit on all of them.
    """
    everything = totals([*now, *more])
    gpu = workers.gpus if workers.gpus is not None else int(everything["gpus"] > 0)
    count = workers.number if workers.number is not None else (everything["gpus"] if gpu else 1)
    wanted = replace(workers, gpus=gpu, count=count) if count else workers  # type: ignore[arg-type]
    for added in range(len(more)):
        sizes = fitting(wanted, [*now, *more[:added]])
        if sizes and sizes.cpus == 1:
            return sizes
    return size_workers(workers, **everything, nodes=[*now, *more])


def fitting(workers: Workers, nodes: list[Node]) -> Sizes | None:
    """The size of a run on nodes as they are; None where it does not fit."""
    try:
        return size_workers(workers, **totals(nodes), nodes=nodes)
    except InputError:
        return None


def told(sizes: Sizes, workers: Workers, nodes: list[Node]) -> Sizes:
    """The same, said where it is not what one would expect."""
    if workers.gpus is None and not sizes.gpus:
        say(f"the cluster has no GPU ({in_words(nodes)}): {in_short(sizes)}, on CPUs. workers.gpus=1 insists on GPUs")
    if sizes.cpus < 1:
        say(f"{in_short(sizes)} share the CPUs of {in_words(nodes)}: {sizes.cpus:g} CPU each")
    return sizes


def say(text: str) -> None:
    """A line on the screen."""
    print(f"{'cluster':>18}  {text}", flush=True)
