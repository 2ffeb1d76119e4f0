"""Processes that are up, and through their imports, before they are asked for.

Ray starts a process when an actor needs one, and ours then import PyTorch and timm: most of the time between two trials
of a study, and before the first batch of a run. So each process of a trial has the raylet of its node start one more of
its kind, which the next trial is given; and the driver of a run has its workers started while it still looks at its
input. Processes are of a kind where their runtime environments agree, which also name what they import.
"""

from __future__ import annotations

from pipelines.cluster.inside_ray import (
    controller_environment,
    feed_environment,
    prestart,
    start_actors,
    worker_environment,
)
from pipelines.cluster.sizes import Sizes


def start_early(sizes: Sizes) -> None:
    """Start what a training will wait for, while the driver still looks at its input.

    These are Ray Data's actors, and the processes of Ray Train's controller, of the actor by which workers wait for
    each other, of the workers and of their feeding tasks.
    """
    if sizes.count:
        prestart(worker_environment(), sizes.count)  # first: they take longest
        prestart(controller_environment(), 2)
        prestart(feed_environment(), sizes.count * sizes.feed_tasks)
    start_actors()
