"""Starts or joins Ray, and settles how many workers and feeding tasks the machines at hand carry."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from pipelines.door import ROOT, SetupError, check_names
from pipelines.recipe import RecipeError, Workers

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
T = TypeVar("T")
SUBMIT = "ray job submit --working-dir . -- python pipelines/voc_pretrain.py"


@dataclass(frozen=True)
class Sizes:
    """What a run takes: `count` train workers, each with `cpus` and `gpus`, and `feed_tasks` tasks of `feed_cpus`."""

    count: int
    gpus: int
    cpus: float
    feed_tasks: int
    feed_cpus: float


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
        RecipeError: more workers, GPUs or CPUs than the cluster can ever have.
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


def joins() -> bool:
    """Whether Ray is a cluster's, not this process' own."""
    return bool(os.environ.get("RAY_ADDRESS"))


def start_actors() -> None:
    """Start two actors of Ray Data's that it would start one after the other, in mid-training.

    They outlive the trainings, and are no children of theirs, whose imports they would repeat.
    """
    from ray.data._internal.cluster_autoscaler import get_or_create_autoscaling_coordinator
    from ray.data._internal.stats import get_or_create_stats_actor

    get_or_create_autoscaling_coordinator()
    get_or_create_stats_actor()


def start_early(sizes: Sizes) -> None:
    """Start what a training will wait for, while the driver still looks at its input.

    These are Ray Data's actors, and the processes of Ray Train's controller, of the actor by which workers wait for
    each other, of the workers and of their feeding tasks.
    """
    from pipelines.prestart import controller_environment, feed_environment, prestart, worker_environment

    if sizes.count:
        prestart(worker_environment(), sizes.count)  # first: they take longest
        prestart(controller_environment(), 2)
        prestart(feed_environment(), sizes.count * sizes.feed_tasks)
    start_actors()


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


def machine() -> tuple[int, int]:
    """Cores and GPUs of this machine."""
    import torch

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, (
        torch.cuda.device_count()
    )


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


def totals() -> dict[str, Any]:
    """CPUs and GPUs that the joined cluster has, or may grow to where it scales by itself."""
    import ray
    from ray._private.state import state  # the only place that tells an autoscaler's upper bound

    now = ray.cluster_resources()
    most = state.get_max_resources_from_cluster_config() or {}
    cpus, gpus = (max(now.get(k, 0.0), float(most.get(k) or 0.0)) for k in ("CPU", "GPU"))
    return {"cores": int(cpus), "gpus": int(gpus), "logical": cpus}


def size_workers(workers: Workers, *, cores: int, gpus: int, logical: float | None) -> Sizes:
    """Numbers of workers and tasks, from the recipe's wishes and what there is.

    Args:
        logical: CPUs that Ray hands out; None for a session still to be started, which gets what it needs.

    Raises:
        RecipeError: it cannot fit.
    """
    gpu = workers.gpus if workers.gpus is not None else int(gpus > 0)
    count = workers.count if workers.count is not None else (gpus if gpu else 1)
    if gpu and max(count, 1) > gpus:
        raise RecipeError(
            f"workers.count = {count} with one GPU each: the cluster has {gpus} GPU(s). "
            f"Lower workers.count, add nodes, or train on CPUs with workers.gpus=0."
        )
    if not gpu and count > cores:
        raise RecipeError(f"workers.count = {count} on CPUs: the cluster has {cores} core(s). Lower workers.count.")
    share = max(1, count)
    tasks = workers.feed_tasks or max(1, min(8, (cores - count) // share))
    needed = share * (1 + tasks) + 1
    if logical is None or logical >= needed:
        return Sizes(count, gpu, 1.0, tasks, 1.0)
    if gpu and workers.feed_tasks:
        raise RecipeError(
            f"{count} workers with {tasks} feeding tasks each and 1 spare need {needed} CPUs, the cluster has "
            f"{logical:g}. Lower workers.feed_tasks or workers.count: without spare CPUs Ray waits for ever."
        )
    # Ray's CPUs are bookkeeping: on a small machine workers and tasks share the cores.
    fraction = int(logical / needed * 100) / 100
    return Sizes(count, gpu, fraction, tasks, fraction)


def check_workers() -> None:
    """Look from one task on each node at what it imports.

    Raises:
        SetupError: a foreign package bears one of our names there.
    """
    if trouble := [text for text in on_each_node(names_on_worker).values() if text]:
        raise SetupError(f"on a Ray worker: {trouble[0]}")


def on_each_node(look: Callable[..., T], *words: Any) -> dict[str, T]:
    """What a function returns on each node, by the node's address."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    task = ray.remote(num_cpus=0)(look)
    answers = [task.options(scheduling_strategy=On(node, soft=False)).remote(*words) for node in nodes]
    found = ray.get(answers)
    return {f"{address} ({node[:8]})": answer for (node, address), answer in zip(nodes.items(), found, strict=True)}


def check_nodes(folder: Path, tracking: str) -> None:
    """On several nodes, what they share must be shared.

    Args:
        folder: the run's; must exist.
        tracking: MLflow's URI.

    Raises:
        SetupError: MLflow's store is a local file, or a node does not see what this one writes to `folder`.
    """
    import ray

    count = sum(node["Alive"] for node in ray.nodes())
    if count < 2:
        return
    if not tracking.startswith(("http:", "https:", "databricks", "postgresql", "mysql", "mssql")):
        raise SetupError(
            f"the cluster has {count} nodes, and MLflow's store is the local file {tracking}: on a file system that "
            "nodes share it breaks. Start `mlflow server` on one node, and set MLFLOW_TRACKING_URI=http://HOST:5000."
        )
    probe = folder / f".probe-{secrets.token_hex(8)}"
    probe.write_text("")
    try:
        blind = [address for address, sees in on_each_node(sees_file, str(probe)).items() if not sees]
    finally:
        probe.unlink(missing_ok=True)
    if blind:
        raise SetupError(
            f"{len(blind)} of {count} nodes ({', '.join(blind[:3])}) do not see {folder}: checkpoints would be lost "
            "with a node. Set `output` to a folder on a file system that all nodes share (NFS, EFS, Lustre)."
        )


def sees_file(path: str) -> bool:
    """Whether this node has the file."""
    return os.path.exists(path)


def names_on_worker() -> str | None:
    """The complaint of `check_names` in this process, or None."""
    try:
        check_names()
    except SetupError as error:
        return str(error)
    return None
