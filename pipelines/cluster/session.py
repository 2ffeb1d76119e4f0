"""Starts or joins Ray, and settles how many workers and feeding tasks the machines carry."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psutil

from pipelines.base.door import ROOT
from pipelines.cluster.folder import own_folder
from pipelines.cluster.growing import settled
from pipelines.cluster.inside_ray import start_actors
from pipelines.cluster.joining import join
from pipelines.cluster.nodes import check_workers
from pipelines.cluster.sizes import Sizes, joins, machine, sized
from pipelines.recipes.recipe import Workers

# Defaults that a user's own environment overrules. All must be set before ray is imported.
ENVIRONMENT = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else each worker of a driver under `uv run` starts through uv again
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # how soon an ended or dead worker is noticed
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "2",  # how soon the notice that a node will be taken away reaches workers
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",  # how soon Ray looks again at what there is, while workers wait
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",  # else Ray reports to its makers over the internet
    "NO_ALBUMENTATIONS_UPDATE": "1",
}
LOCAL = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # keeps every listener of a local Ray on 127.0.0.1
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an actor that looks out for nodes to be taken away
}
STORE_SHARE = 0.3  # of the machine's memory, the most that a local session's object store takes, as by Ray's default


@contextlib.contextmanager
def ray_cluster(
    workers: Workers,
    store: Callable[[Sizes], int] = lambda sizes: 512 << 20,
    slots: int = 1,
    early: Callable[[Sizes], None] = lambda sizes: None,
    counts: Sequence[int] = (),
) -> Iterator[Sizes]:
    """A Ray session sized for `workers`: the cluster of RAY_ADDRESS, else a local one only on loopback.

    Args:
        workers: the recipe's wishes.
        store: bytes of a local session's object store for each run, from what the run takes.
        slots: runs of that size that a local session has room for, an equal part of the machine each.
        early: called in a local session as soon as it is up, while it is still looked at.
        counts: the numbers of workers that the recipe's range allows; empty where it has none. A local session takes
            the most that this machine carries.

    Raises:
        SetupError: a submitted job without its working directory, or packages shadowed on the nodes.
        InputError: more workers, GPUs or CPUs than the cluster can ever have.
    """
    os.environ.update({k: v for k, v in ENVIRONMENT.items() if k not in os.environ})
    cores, gpus = machine()
    if not joins():
        there: dict[str, Any] = {"cores": max(1, cores // slots), "gpus": gpus // slots, "logical": None}
        sizes = sized(workers, counts, **there)
        os.environ.update({k: v for k, v in (LOCAL | own_folder()).items() if k not in os.environ})
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    import ray

    quiet()
    if ray.is_initialized():  # a session of the caller's (a study, a test): its owner ends it
        yield settled(workers, counts)
        return
    with own_sigterm():
        if joins():
            join()
        else:
            logical = slots * (sizes.count * (1 + sizes.feed_tasks) + 1)
            ray.init(
                address="local",
                num_cpus=max(cores, logical),
                object_store_memory=min(slots * store(sizes), int(STORE_SHARE * psutil.virtual_memory().total)),
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=True,
                logging_level=logging.ERROR,
            )
    try:
        if joins():
            start_actors()
            sizes = settled(workers, counts)
        else:
            early(sizes)
        check_workers()
        yield sizes
    finally:
        ray.shutdown()


@contextlib.contextmanager
def own_sigterm() -> Iterator[None]:
    """The handler of SIGTERM as it was, after a body that starts Ray, which puts its own in its place."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if callable(before) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def quiet() -> None:
    """Leave the screen to the record: what goes wrong arrives as an exception, without Ray's traceback above it."""
    import ray.data
    import ray.train  # noqa: F401  (their imports set the levels)

    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
