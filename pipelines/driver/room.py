"""What a run would have if it started now: workers, tasks and GPUs, as far as that is known without taking any."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipelines.base.errors import InputError
from pipelines.cluster.gpus import Found, gpus_by_label, gpus_here
from pipelines.cluster.sizes import Sizes, joins, machine, sized
from pipelines.driver.reasons import Reasons
from pipelines.recipes.recipe import Recipe, Workers, counts_of
from segmodels.gpus import gpu_named


@dataclass(frozen=True)
class Room:
    """What a run would have: its size (None where it finds no place), the GPUs, and who says so."""

    sizes: Sizes | None
    gpus: list[Found]
    source: str


def check_gpus_named(gpus: Sequence[str]) -> None:
    """Make sure that the table has the GPUs that a person names.

    Raises:
        InputError: it has not.
    """
    try:
        for name in gpus:
            gpu_named(name)
    except ValueError as error:
        raise InputError(f"--gpu: {error}") from None


def room_of(recipe: Recipe, gpus: Sequence[str], reasons: Reasons) -> Room:
    """Workers and tasks on the GPUs that are named, on the joined cluster, or on this machine."""
    workers, counts, sizes = recipe.workers, counts_of(recipe), None
    cores, here = machine()
    if gpus:
        found, source = [(gpu.name, gpu.memory_gib) for gpu in map(gpu_named, gpus)], "--gpu"
        here = max(1, counts[-1] if counts else workers.number or 1)
        cores = max(cores, 2 * here)
    elif joins():
        return room_on_cluster(replace(workers, count=counts[0]) if counts else workers, reasons)
    else:
        found, source = gpus_here() if here else [], "this machine"
    if workers.count == 0 and recipe.feed == "torch":
        sizes = Sizes(0, int(here > 0 and workers.gpus != 0), 1.0, workers.feed_tasks or 0, 1.0)
    else:
        with reasons.guard():
            sizes = sized(workers, counts, cores=cores, gpus=here, logical=None)
    return Room(sizes, found, source)


def room_on_cluster(workers: Workers, reasons: Reasons) -> Room:
    """The same on the cluster of RAY_ADDRESS, which is joined, asked for its nodes, and left."""
    import ray

    from pipelines.cluster.growing import planned
    from pipelines.cluster.joining import join
    from pipelines.cluster.sizes import in_words, possible, present, to_come

    with reasons.guard():
        join()
        try:
            source = f"the cluster at {os.environ['RAY_ADDRESS']}: {in_words(possible())}"
            return Room(planned(workers, present(), to_come()), gpus_by_label(), source)
        finally:
            ray.shutdown()
    return Room(None, [], "the cluster, which cannot be asked")
