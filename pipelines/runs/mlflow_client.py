"""MLflow, and the only importer of it: a client, experiments, runs, parameters."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.base.addresses import CURE, hide_secret, holds_secret
from pipelines.base.door import ROOT
from pipelines.base.errors import SetupError
from pipelines.runs.record import append

SYSTEM_S = 5.0
PARENT = "mlflow.parentRunId"  # the tag by which its page nests runs
KEY = "context_heads.key"  # and the one that names a run before its server does
PARAM_CHARS = 6000  # MLflow cuts longer values silently; whole values are in recipe.yaml


class Point(NamedTuple):
    """A value of a metric at a step; `time` in ms."""

    key: str
    value: float
    time: int
    step: int


def default_uri(output: Path) -> str:
    """MLFLOW_TRACKING_URI, else an sqlite file below the output folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{output / 'mlflow.db'}"


@contextlib.contextmanager
def open_client(uri: str) -> Iterator[Any]:
    """A client of the tracking server, and within the body what shows whether it answers.

    Raises:
        SetupError: the server does not answer, or its address holds a secret.
    """
    # a server that is away should cost seconds: the record keeps everything, and the next try comes soon
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    import mlflow

    for name in ("mlflow.store.db.utils", "mlflow.system_metrics.system_metrics_monitor", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    if holds_secret(uri):
        raise SetupError(f"MLflow's address {hide_secret(uri)} holds a user or password. {CURE}")
    try:
        yield mlflow.MlflowClient(tracking_uri=uri)
    except Exception as error:
        raise SetupError(
            f"MLflow at {uri} cannot be used: {first_line(error)} Start the server, or unset "
            "MLFLOW_TRACKING_URI (and the recipe's `tracking`) to log into a local sqlite file."
        ) from error


def find_experiment(client: Any, name: str, uri: str, output: Path) -> str:
    """Id of an experiment, created when missing; artifacts of a local store are next to it."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    place = (output / "mlartifacts" / name).as_uri() if uri.startswith("sqlite:") else None
    return client.create_experiment(name, artifact_location=place)


def create_run(client: Any, experiment: str, name: str, tags: dict[str, str], params: Mapping[str, Any]) -> str:
    """A new run with its parameters, or the one that a server which died meanwhile had begun. Returns its id."""
    run = begun(client, experiment, name, tags)
    run = run or client.create_run(experiment, run_name=name, tags=tags | git_tags()).info.run_id
    send_params(client, run, params)
    return run


def begun(client: Any, experiment: str, name: str, tags: Mapping[str, str]) -> str | None:
    """Id of the unfinished run of that name and key or parent: created, but its id never reached this machine."""
    tag = next((tag for tag in (KEY, PARENT) if tag in tags), None)
    if tag is None:
        return None
    found = client.search_runs([experiment], f"tags.`{tag}` = '{tags[tag]}' and attributes.status = 'RUNNING'")
    return next((run.info.run_id for run in found if run.info.run_name == name), None)


def send_params(client: Any, run: str, params: Mapping[str, Any]) -> None:
    """Parameters of a run; those that MLflow would cut are kept whole in params.json."""
    from mlflow.entities import Param

    texts = {key: str(value) for key, value in params.items()}
    values = [Param(key, cut(text)) for key, text in texts.items()]
    for first in range(0, len(values), 100):
        client.log_batch(run, params=values[first : first + 100])
    if any(len(text) > PARAM_CHARS for text in texts.values()):
        client.log_dict(run, texts, "params.json")


def send_metrics(client: Any, run: str, points: Iterable[Point]) -> None:
    """Metrics of a run, in batches that a server takes; a value that is not finite is left out."""
    from mlflow.entities import Metric

    metrics = [Metric(p.key, float(p.value), p.time, p.step) for p in points if math.isfinite(p.value)]
    for first in range(0, len(metrics), 1000):
        client.log_batch(run, metrics=metrics[first : first + 1000])


class System:
    """What this machine does meanwhile, by MLflow's own monitors, kept in a record of its own."""

    def __init__(self, uri: str) -> None:
        """Args:
        uri: of the run's MLflow; without one MLflow would make a store in the current folder. Nothing is sent there.
        """
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self.monitors = SystemMetricsMonitor("", tracking_uri=uri).monitors  # CPU, memory, disk, network, GPUs
        self.taken = 0.0

    def sample(self, path: Path) -> None:
        """Append a line to the record at `path`, at most every `SYSTEM_S` seconds."""
        if time.monotonic() - self.taken < SYSTEM_S:
            return
        self.taken = time.monotonic()
        values: dict[str, float] = {}
        for monitor in self.monitors:
            monitor.collect_metrics()
            values |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        now = int(time.time() * 1000)
        with path.open("a") as file:
            append(file, {"kind": "system", "step": now // 1000, "time": now, "values": values})


def cut(text: str) -> str:
    """A parameter's value as MLflow takes it; longer ones end with where the whole value is."""
    return text if len(text) <= PARAM_CHARS else f"{text[: PARAM_CHARS - 30]}… (whole in params.json)"


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def git_tags() -> dict[str, str]:
    """The commit of the code, and whether files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=10
        ).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return {"mlflow.source.git.commit": commit, "git.uncommitted_changes": str(dirty)} if commit else {}
