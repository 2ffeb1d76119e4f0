"""Starts or joins Ray, and settles how many workers and feeding tasks the machines at hand carry."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from pipelines.base.door import ROOT
from pipelines.base.errors import SetupError
from pipelines.cluster.nodes import check_workers
from pipelines.cluster.sizes import Sizes, joins, machine, size_workers, totals
from pipelines.recipes.recipe import Workers

# Defaults that a user's own environment overrules. All must be set before ray is imported.
ENVIRONMENT = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else each worker of a driver under `uv run` starts through uv anew
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # how soon an ended or dead worker is noticed
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",  # else Ray reports to its makers over the internet
    "NO_ALBUMENTATIONS_UPDATE": "1",
}
LOCAL = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # keeps every listener of a local Ray on 127.0.0.1
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an actor that looks out for nodes to be taken away
}
STORE_SHARE = 0.3  # of the machine's memory, the most that a local session's object store takes, as by Ray's default
SUBMIT = "ray job submit --working-dir . -- python pipelines/voc_pretrain.py"


@contextlib.contextmanager
def ray_cluster(
    workers: Workers,
    store: Callable[[Sizes], int] = lambda sizes: 512 << 20,
    slots: int = 1,
    early: Callable[[Sizes], None] = lambda sizes: None,
) -> Iterator[Sizes]:
    """A Ray session sized for `workers`: the cluster of RAY_ADDRESS, else a local one on loopback alone.

    Args:
        workers: the recipe's wishes.
        store: bytes of a local session's object store for each run, from what the run takes.
        slots: runs of that size that a local session has room for, an equal part of the machine each.
        early: called in a local session as soon as it is up, while it is still looked at.

    Raises:
        SetupError: a submitted job without its working directory, or packages shadowed on the nodes.
        InputError: more workers, GPUs or CPUs than the cluster can ever have.
    """
    os.environ.update({k: v for k, v in ENVIRONMENT.items() if k not in os.environ})
    cores, gpus = machine()
    if not joins():
        sizes = size_workers(workers, cores=max(1, cores // slots), gpus=gpus // slots, logical=None)
        os.environ.update({k: v for k, v in (LOCAL | own_folder()).items() if k not in os.environ})
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    import ray

    quiet()
    if ray.is_initialized():  # a session of the caller's (a study, a test): its owner ends it
        yield size_workers(workers, **totals())
        return
    with own_sigterm():
        if joins():
            join()
            sizes = size_workers(workers, **totals())
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
        if not joins():
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


def own_folder() -> dict[str, str]:
    """A folder for local sessions alone.

    In Ray's usual one a cluster that was killed leaves its address behind, and Ray Train's workers ask there, for
    10 s and more at the end of each training.
    """
    folder = Path(tempfile.gettempdir()) / f"context-heads-ray-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return {"RAY_TMPDIR": str(folder)}


def quiet() -> None:
    """Leave the screen to the record: what goes wrong arrives as an exception, without Ray's traceback above it."""
    import ray.data
    import ray.train  # noqa: F401  (their imports set the levels)

    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def join() -> None:
    """Join the cluster of RAY_ADDRESS; a driver that was not submitted as a job sends the project along."""
    import ray

    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        if not ray.get_runtime_context().runtime_env.get("working_dir"):
            ray.shutdown()
            raise SetupError(f"this job was submitted without its code. Add --working-dir, from {ROOT}:\n  {SUBMIT}")
    else:
        ray.init(runtime_env={"working_dir": str(ROOT)}, log_to_driver=False, logging_level=logging.ERROR)
