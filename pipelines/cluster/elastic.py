"""How many workers train while nodes come and go: the recipe's numbers only, and each change from a checkpoint.

Ray Train starts the workers again with another number when a worker is lost, and when nodes have joined. Of what it
offers, a run takes the largest number by which its batch can be divided and for which there is room, feeding tasks
included. A batch is a pure function of recipe, shards and step, so that another number changes only how its images are
dealt out.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from pathlib import Path

from pipelines.base.files import write_text
from pipelines.cluster.nodes import alive
from pipelines.cluster.sizes import Sizes, node_of, present, room_for

GROW_S = 30.0  # between two looks for more nodes while workers train
REST_S = 600.0  # that a number which found no place rests, unless nodes come or go before


class Choice:
    """What Ray Train's controller asks: how many workers of those that it could start.

    Args:
        sizes: of the run; `counts` are the numbers that it takes.
        avoided: ids of nodes on which no worker is to be.
        note: the file that asks the workers for a checkpoint; they remove it when that is written, and wait. None where
            machines share no files: workers then go on from the last one.
    """

    def __init__(self, sizes: Sizes, avoided: Collection[str], note: Path | None) -> None:
        self.sizes, self.avoided, self.note = sizes, set(avoided), note
        self.refused, self.there, self.until = 0, set[str](), 0.0

    def number(self, offered: Mapping[str, Mapping[str, float]], world: int) -> int:
        """How many workers to train with; 0 while there is no room for the fewest.

        Args:
            offered: what Ray sets apart for the run: node -> resources.
            world: workers that train now, whose number does not fall before one is lost.
        """
        least = self.sizes.counts[0]
        most = self.carried(offered)
        found = [n for n in self.sizes.counts if world < n <= most and self.fits(n, world)]
        tried = [n for n in found if not self.rests(n)]
        return max(tried, default=world or (least if least in found else 0))

    def carried(self, offered: Mapping[str, Mapping[str, float]]) -> int:
        """Workers that what Ray sets apart has place for."""
        nodes = [node_of(resources) for resources in offered.values()]
        places = [node.units(self.sizes.cpus) for node in nodes]
        hosts = [min(place, node.gpus) for place, node in zip(places, nodes, strict=True)]
        return sum(hosts if self.sizes.gpus else places)

    def fits(self, count: int, world: int) -> bool:
        """Whether so many workers find a place with their feeding tasks: the nodes are as they are now.

        Where workers train, the others must fit into what is free. Without any, the fewest need no spare place.
        """
        sizes, nodes = self.sizes.of(count), present(self.avoided)
        if not sizes.gpus and count > max(1.0, sum(node.cpus for node in nodes)):
            return False
        if world:
            return room_for(sizes, nodes) and is_free(self.sizes.of(count - world))
        return room_for(sizes, nodes) or (count == self.sizes.counts[0] and room_for(sizes, nodes, spare=0))

    def refuse(self, count: int) -> None:
        """A number did not find its place in time, though it seemed to: others may hold it."""
        self.refused, self.there, self.until = count, set(alive()), time.monotonic() + REST_S

    def rests(self, count: int) -> bool:
        """Whether a number is not tried, because it, or a smaller one, was just refused."""
        return 0 < self.refused <= count and time.monotonic() < self.until and set(alive()) == self.there

    def ask(self) -> None:
        """Have the workers write a checkpoint before Ray ends them, so that no step is made twice."""
        if self.note:
            write_text(self.note, "")

    @property
    def is_answered(self) -> bool:
        """Whether they have."""
        return self.note is None or not self.note.exists()

    def withdraw(self) -> None:
        """Ask no more: the workers have ended."""
        if self.note:
            self.note.unlink(missing_ok=True)


def is_free(sizes: Sizes) -> bool:
    """Whether the cluster has unused CPUs and GPUs for workers and their tasks."""
    import ray

    left = ray.available_resources()
    cpus = sizes.count * (sizes.cpus + sizes.feed_tasks * sizes.feed_cpus)
    return left.get("CPU", 0.0) + 1e-6 >= cpus and left.get("GPU", 0.0) >= sizes.count * sizes.gpus
