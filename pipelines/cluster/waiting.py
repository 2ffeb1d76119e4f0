"""Waiting for room on a cluster: what for, since when, what there is, and not for ever."""

from __future__ import annotations

import time
from collections.abc import Callable

from pipelines.base.errors import RunFailed, SetupError
from pipelines.base.text import duration
from pipelines.cluster.inside_ray import OWNED
from pipelines.cluster.nodes import AVOIDED
from pipelines.cluster.sizes import Sizes, in_short, in_words, present, room_for
from pipelines.recipes.recipe import Workers

QUIET_S = 10.0  # of waiting before the first line
TELL_S = 60.0  # between two lines
LOOK_S = 2.0  # between two looks
PENDING = ("PENDING", "RESCHEDULING")


def limit(workers: Workers) -> float:
    """Seconds that a run waits for room."""
    return 60.0 * workers.wait_minutes


class Wait:
    """One wait: tells of it now and then, and knows when it is too long.

    Args:
        sizes: what is waited for.
        seconds: the longest wait.
        say: shows a line.
    """

    def __init__(self, sizes: Sizes, seconds: float, say: Callable[[str], None]) -> None:
        self.sizes, self.seconds, self.say = sizes, seconds, say
        self.began, self.since = time.monotonic(), time.strftime("%H:%M:%S")
        self.told = self.began + QUIET_S - TELL_S

    @property
    def taken(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self.began

    @property
    def is_over(self) -> bool:
        """Whether it was too long."""
        return self.taken > self.seconds

    def tell(self) -> None:
        """Say what is waited for, when it is time to."""
        if time.monotonic() - self.told >= TELL_S:
            self.told = time.monotonic()
            self.say(f"waiting {self.text()}; at most {duration(self.seconds)} (workers.wait_minutes). {self.cure()}")

    def text(self) -> str:
        """What is waited for, since when, and what there is."""
        apart = f", without {', '.join(sorted(AVOIDED.values()))}, which do not see the data" if AVOIDED else ""
        return (
            f"for room for {in_short(self.sizes)}, {self.sizes.cpus:g} CPU each, since {self.since} "
            f"({duration(self.taken)}); the cluster has {in_words(present())}, {free()} free{apart}"
        )

    def cure(self) -> str:
        """How to go on with less."""
        if (count := self.sizes.count) < 2:
            return "Add nodes; or, to go on with what there is, give fewer workers.feed_tasks"
        return (
            f"To go on with what there is, give fewer: workers.count={count // 2}, or a range, workers.count=[1, "
            f"{count}], with which a run goes on by itself"
        )


def free() -> str:
    """The cluster's free CPUs and GPUs, for people."""
    import ray

    left = ray.available_resources()
    gpus = f" and {left['GPU']:g} GPU(s)" if left.get("GPU") else ""
    return f"{left.get('CPU', 0.0):g} CPU(s){gpus}"


def ask_for(sizes: Sizes, seconds: float, say: Callable[[str], None]) -> bool:
    """Have an autoscaler start the nodes that a run needs: they are asked for as the run itself will ask.

    The demand goes with this process, however it ends. When all is there it is given up: the run takes its place.

    Args:
        seconds: the longest wait.
        say: shows a line.

    Returns:
        Whether there is room now.
    """
    from ray.util import placement_group, remove_placement_group

    worker = {"CPU": sizes.cpus} | ({"GPU": 1.0} if sizes.gpus else {})
    task = {"CPU": sizes.feed_cpus}
    wait = Wait(sizes, seconds, say)
    say(f"asking the cluster for {in_short(sizes)}, {sizes.cpus:g} CPU each; it has {in_words(present())}")
    group = placement_group([worker] * sizes.count + [task] * (max(1, sizes.count) * sizes.feed_tasks), "PACK")
    try:
        while not group.wait(LOOK_S):
            wait.tell()
            if wait.is_over:
                return False
    finally:
        remove_placement_group(group)
    say(f"the cluster has {in_words(present())}, after {duration(wait.taken)}")
    return True


def too_few(sizes: Sizes, seconds: float) -> SetupError:
    """What to say where nodes did not come."""
    return SetupError(
        f"no room for {in_short(sizes)} in {duration(seconds)} (workers.wait_minutes): the cluster has "
        f"{in_words(present())}, {free()} free. Find out why no node comes (`ray status`), give fewer workers "
        "(workers.count), or train on CPUs (workers.gpus=0)"
    )


class Waiting:
    """Looks, while a training runs, whether its workers and tasks have a place, and ends the wait for one.

    Args:
        sizes: of the training.
        workers: the recipe's wishes.
        say: shows a line.
        progress: a number that grows as training does.
    """

    def __init__(
        self, sizes: Sizes, workers: Workers, say: Callable[[str], None], progress: Callable[[], int] = lambda: 0
    ) -> None:
        self.sizes, self.seconds, self.say, self.progress = sizes, limit(workers), say, progress
        self.wait: Wait | None = None
        self.looked, self.before, self.needed = 0.0, 0, sizes

    def look(self) -> None:
        """Look, when it is time to.

        Raises:
            RunFailed: the wait was too long.
        """
        if time.monotonic() - self.looked < LOOK_S or not self.sizes.count:
            return
        self.looked, missing = time.monotonic(), self.lacks_room()
        if missing and self.wait is None:
            self.wait, self.before = Wait(self.needed, self.seconds, self.say), self.progress()
        elif missing is False or (self.wait and self.progress() > self.before):
            self.wait = None
        if self.wait:
            self.wait.tell()
            if self.wait.is_over:
                raise self.over(self.wait)

    def lacks_room(self) -> bool | None:
        """Whether workers, or the tasks that feed them, find no place; None while Ray only starts to look for one."""
        groups = own_groups()
        pending = [count for state, count in groups if state in PENDING]
        made = [count for state, count in groups if state == "CREATED"]
        # of a range, Ray asks for no group before its fewest workers find a place
        if not (counts := pending or made or self.sizes.counts[:1]):
            return None
        self.needed = self.sizes.of(max(counts))
        if pending or not room_for(self.needed, present(AVOIDED), spare=0):
            return True
        return False if made else None

    @property
    def waits(self) -> bool:
        """Whether no worker trains because there is no room."""
        return self.wait is not None and self.wait.taken > LOOK_S

    def over(self, wait: Wait) -> RunFailed:
        """What to say at the end of the wait."""
        return RunFailed(
            f"training waited {wait.text()}: longer than workers.wait_minutes allows. The same command continues from "
            f"the last checkpoint as soon as there is room. {wait.cure()}"
        )


def own_groups() -> list[tuple[str, int]]:
    """The placement groups that this training asked for and has not given up: state, and for how many workers."""
    import ray
    from ray.util import placement_group_table

    context = ray.get_runtime_context()
    job, owner = context.get_job_id(), context.get_actor_id()  # a group's id ends with its job's
    found = [group for key, group in placement_group_table().items() if key.endswith(job)]
    ours = [g for g in found if owner is None or g["name"].startswith(f"{OWNED}{owner}")]
    return [(group["state"], len(group["bundles"])) for group in ours if group["state"] != "REMOVED"]
