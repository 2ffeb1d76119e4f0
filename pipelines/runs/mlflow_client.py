"""MLflow, and the only importer of it: a client, and what a run is sent."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shlex
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from pipelines.base.errors import InputError, SetupError
from pipelines.base.files import to_json
from pipelines.runs.local_store import STORE, bring_along, sqlite_uri, without_stray_folder
from pipelines.runs.mlflow_faults import PORTS, check_address, explain, first_line
from pipelines.runs.record import append

SYSTEM_S = 5.0
ANSWER_S = 5.0  # how long a server's port may take to answer
PARENT = "mlflow.parentRunId"  # the tag by which its page nests runs
NOTE = "mlflow.note.content"  # the tag that its page shows as the run's description
KEY = "context_heads.key"  # and the one that names a run before its server does
TEXT_CHARS = 5000  # of a tag
PARAM_CHARS = 6000  # MLflow cuts longer values silently; whole values are in recipe.yaml


class Point(NamedTuple):
    """A value of a metric at a step; `time` in ms."""

    key: str
    value: float
    time: int
    step: int


class Shards(NamedTuple):
    """A split that a run read, as MLflow shows datasets.

    `use` is what for, `kind` the kind of `uri`, `columns` name and type of each; `profile` are facts for people.
    """

    use: str
    name: str
    digest: str
    kind: str
    uri: str
    columns: Sequence[Mapping[str, str]]
    profile: Mapping[str, Any]


def default_uri(output: Path) -> str:
    """MLFLOW_TRACKING_URI, else an sqlite file below the output folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(output / STORE)


def connect(uri: str, say: Callable[[str], None] = lambda text: None) -> Any:
    """A client of the store at an address, once that answers.

    Args:
        say: is told what was done to a local store that was moved.

    Raises:
        Exception: what MLflow or the network raise; `explain` says what that means.
    """
    # a server that is away should cost seconds: the record keeps everything, and the next try comes soon
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    knock(uri)
    import mlflow

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # its errors come as exceptions too
    for name in ("mlflow.system_metrics.system_metrics_monitor", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    if told := bring_along(uri):
        say(told)
    with without_stray_folder(uri):
        return mlflow.MlflowClient(tracking_uri=uri)


def knock(uri: str) -> None:
    """See whether anything answers at a server's port: MLflow would try for up to two minutes.

    Raises:
        OSError: nothing does.
    """
    parts = urlsplit(uri)
    scheme = parts.scheme.partition("+")[0]
    if scheme not in PORTS or not parts.hostname or (scheme.startswith("http") and urllib.request.getproxies()):
        return
    socket.create_connection((parts.hostname, parts.port or PORTS[scheme]), ANSWER_S).close()


@contextlib.contextmanager
def answering(uri: str) -> Iterator[None]:
    """A body that needs MLflow to answer.

    Raises:
        SetupError: it does not, or not as it should; with the cure.
    """
    try:
        yield
    except (InputError, SetupError):
        raise
    except Exception as error:
        raise SetupError(explain(uri, error)) from error


@contextlib.contextmanager
def open_client(uri: str) -> Iterator[Any]:
    """A client of the store at an address, and within the body what shows whether it answers.

    Raises:
        SetupError: the store does not answer, or MLflow can never be at its address.
    """
    check_address(uri)
    with answering(uri):
        yield connect(uri)


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


def send_costs(client: Any, run: str, costs: Mapping[str, float]) -> None:
    """Metrics that are known before the first step, at the run's start: sent again they are the same points."""
    began = client.get_run(run).info.start_time
    send_metrics(client, run, [Point(key, value, began, 0) for key, value in costs.items()])


def send_inputs(client: Any, run: str, shards: Iterable[Shards]) -> None:
    """The shards that a run read, as MLflow's datasets; those that it has already stay as they are."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = [
        DatasetInput(
            Dataset(
                name=s.name, digest=s.digest, source_type=s.kind, source=to_json({"uri": s.uri, "url": s.uri}),
                schema=to_json({"mlflow_colspec": s.columns}), profile=to_json(s.profile),
            ),
            [InputTag("mlflow.data.context", s.use)],
        )
        for s in shards
    ]  # fmt: skip
    if inputs:
        client.log_inputs(run, datasets=inputs)


def set_tags(client: Any, run: str, tags: Mapping[str, str | None]) -> None:
    """Set tags of a run, cut to what MLflow takes; None removes one that is there."""
    there = client.get_run(run).data.tags if None in tags.values() else {}
    for key, value in tags.items():
        if value is not None:
            client.set_tag(run, key, value[:TEXT_CHARS])
        elif key in there:
            client.delete_tag(run, key)


def look_at(uri: str, experiment: str | None = None, run: str | None = None) -> str:
    """What opens the page of a run, or of the store: a link, after the command that serves a local store.

    MLflow 3 shows an experiment as one of language models unless the link says what it is.
    """
    page = f"/#/experiments/{experiment}/runs/{run}?workflowType=machine_learning" if experiment and run else ""
    if uri.startswith(("http:", "https:")):
        return uri.rstrip("/") + page
    if uri.startswith("databricks"):
        return uri
    return f"uv run mlflow ui --backend-store-uri {shlex.quote(uri)}\n  then open  http://127.0.0.1:5000{page}"


class System:
    """What this machine does meanwhile, by MLflow's own monitors, kept in a record of its own."""

    def __init__(self) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        # Nothing is sent: without this address, where nobody listens, MLflow would make a store in the current folder.
        self.monitors = SystemMetricsMonitor("", tracking_uri="http://127.0.0.1:9").monitors  # CPU, memory, …, GPUs
        self.taken = 0.0

    def sample(self, path: Path) -> None:
        """Append a line to the record at `path`, at most every `SYSTEM_S` seconds; a monitor that fails is left out."""
        if time.monotonic() - self.taken < SYSTEM_S:
            return
        self.taken = time.monotonic()
        values: dict[str, float] = {}
        for monitor in list(self.monitors):
            try:
                monitor.collect_metrics()
                values |= monitor.aggregate_metrics()
                monitor.clear_metrics()
            except Exception as error:  # whatever a driver can raise
                self.monitors.remove(monitor)
                print(f"warning: {type(monitor).__name__} fails, it is left out: {first_line(error)}", file=sys.stderr)
        now = int(time.time() * 1000)
        with path.open("a") as file:
            append(file, {"kind": "system", "step": now // 1000, "time": now, "values": values})


def cut(text: str) -> str:
    """A parameter's value as MLflow takes it; longer ones end with where the whole value is."""
    return text if len(text) <= PARAM_CHARS else f"{text[: PARAM_CHARS - 30]}… (whole in params.json)"
