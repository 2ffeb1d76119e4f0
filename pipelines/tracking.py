"""MLflow, and the only importer of it: a parent run per chain, a child per stage, fed from the local record.

Of a study's trial the chain's run is a child of the study's, and a trial of one stage has no run below it.

The record (record.jsonl) is the truth. A `Sender` in the driver reads it while the workers write and sends it on; how
far it sent is kept in the run's folder. So a resumed run continues the same MLflow runs without a doubled step, a
server that was away is caught up with, and `python -m pipelines.replay` sends what it did not come back for.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import figures
from pipelines.door import ROOT, SetupError, Stopped
from pipelines.recipe import CURE, Recipe, flatten, hide_secret, holds_secret, to_page, to_yaml
from pipelines.record import read_record, write_text

POLL_S = 0.5
RETRY_S = 15.0  # while the server is away
SYSTEM_S = 5.0
RECORDS = ("record.jsonl", "system.jsonl")
PARENT = "mlflow.parentRunId"  # the tag by which its page nests runs
KEY = "context_heads.key"  # and the one that names a run before its server does
PARAM_CHARS = 6000  # MLflow cuts longer values silently; whole values stand in recipe.yaml
METRICS = {
    "train": {"loss": "train/loss", "lr": "train/lr", "epoch": "train/epoch", "images_per_s": "speed/images_per_s",
              "data_wait": "speed/data_wait_share", "gpu_mib": "speed/gpu_peak_mib"},
    "val": {"miou": "val/mIoU", "accuracy": "val/pixel_accuracy", "fwiou": "val/fwIoU"},
}  # fmt: skip


def default_uri(output: Path) -> str:
    """MLFLOW_TRACKING_URI, else an sqlite file below the output folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{output / 'mlflow.db'}"


@contextlib.contextmanager
def connected(uri: str) -> Iterator[Any]:
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
    """Id of an experiment, created when missing; artifacts of a local store lie beside it."""
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


class Tracker:
    """The MLflow runs of one chain. Creating them fails early; what comes later never stops a training."""

    def __init__(
        self,
        recipe: Recipe,
        output: Path,
        folder: Path,
        uri: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Find the runs of `folder` (a resume, a replay) or create the parent.

        Args:
            recipe: the chain's.
            output: where the default store and the artifacts of a local one lie.
            folder: the run's.
            uri: the tracking server, if not the recipe's, the environment's or the default.
            tags: of a study's trial: the study's run as its parent, variant and seed.

        Raises:
            SetupError: the tracking server does not answer.
        """
        self.uri = uri or recipe.tracking or default_uri(output)
        self.recipe, self.output, self.folder, self.path = recipe, output, folder, folder / "mlflow.json"
        known = json.loads(self.path.read_text()) if self.path.exists() else {}
        fresh: dict[str, Any] = {"uri": self.uri, "stages": {}, "sent": {}, "ended": []}
        fresh["flat"] = bool(tags) and len(recipe.stages) == 1
        self.state: dict[str, Any] = fresh | known if known.get("uri") == self.uri else fresh
        self.flat = self.state["flat"]  # one stage: its metrics go to the trial's own run
        with connected(self.uri) as self.client:
            if "parent" not in self.state:
                self.experiment = find_experiment(self.client, recipe.experiment, self.uri, output)
                self.state.setdefault("key", uuid.uuid4().hex)
                if known.get("uri") in (None, self.uri):  # else what is noted of another server stays until this has it
                    self.save()
                named = {KEY: self.state["key"]} | dict(tags or {})
                self.state["parent"] = self.create(str(recipe.name), named, flatten(to_page(recipe)))
                self.client.log_text(self.state["parent"], to_yaml(recipe), "recipe.yaml")
                self.save()
            else:
                self.experiment = self.client.get_run(self.state["parent"]).info.experiment_id

    def create(self, name: str, tags: dict[str, str], params: dict[str, Any]) -> str:
        """Id of a new run in the chain's experiment, see `create_run`."""
        return create_run(self.client, self.experiment, name, tags, params)

    def save(self) -> None:
        """Keep run ids and offsets beside the run."""
        write_text(self.path, json.dumps(self.state, indent=1))

    def run_of(self, place: Path) -> str:
        """Id of a stage's run, a child of the chain's (or that one itself, of a study's trial of one stage).

        Created where it is missing, the same one after a resume.
        """
        if place.name not in self.state["stages"]:
            about = read_about(place)
            if self.flat:
                run = self.state["parent"]
                send_params(self.client, run, about["params"])
                for key, value in about["tags"].items():
                    self.client.set_tag(run, key, value)
            else:
                tags = about["tags"] | {PARENT: self.state["parent"]}
                run = self.create(f"{self.recipe.name}/{place.name}", tags, about["params"])
            self.state["stages"][place.name] = run
            self.save()
        return self.state["stages"][place.name]

    def deliver(self, place: Path) -> None:
        """Send what MLflow does not have yet of the stage in the folder `place`; what arrived is not sent again.

        A point that is sent twice all the same, since the driver died before it took note, has the same time, step and
        value, and MLflow keeps it once.
        """
        run = self.run_of(place)
        for name in RECORDS:
            lines, end = read_record(place / name, self.sent(place, name))
            if lines:
                send_lines(self.client, run, place, lines)
                self.state["sent"][f"{place.name}/{name}"] = end
                self.save()
        if (place / "done.json").exists() and place.name not in self.state["ended"]:
            self.deliver_end(place, run)
            self.state["ended"].append(place.name)
            self.save()

    def deliver_end(self, place: Path, run: str) -> None:
        """Upload a finished stage's checkpoint, put its numbers on the parent, end its run."""
        from mlflow.entities import Metric

        done = json.loads((place / "done.json").read_text())
        self.client.log_artifact(run, str(final_weights(place)), "checkpoint")
        scores = {"mIoU": done["miou"], "mIoU_before": done["miou_before"]} if done["val_rows"] else {}
        head = "" if self.flat else f"{place.name}/"
        points = [Metric(f"{head}{key}", value * 100, done["time"], 0) for key, value in scores.items()]
        self.client.log_batch(self.state["parent"], metrics=points)
        self.client.set_terminated(run, "FINISHED", end_time=done["time"])

    def undelivered(self) -> list[str]:
        """Stages of which MLflow lacks something."""
        return [
            place.name
            for place in (self.folder / stage.name for stage in self.recipe.stages)
            if any(read_record(place / name, self.sent(place, name))[0] for name in RECORDS)
            or ((place / "done.json").exists() and place.name not in self.state["ended"])
        ]

    def sent(self, place: Path, name: str) -> int:
        """Bytes of a stage's record that MLflow has."""
        return self.state["sent"].get(f"{place.name}/{name}", 0)

    @contextlib.contextmanager
    def sending(self, places: Sequence[Path]) -> Iterator[None]:
        """Send the stages in these folders while the body trains them; their runs end as the body does."""
        sender = Sender(self, places)
        sender.start()
        status = "FAILED"
        try:
            yield
            status = "FINISHED"
        except (KeyboardInterrupt, Stopped):
            status = "KILLED"
            raise
        finally:
            sender.stop()
            self.settle(status)

    def settle(self, status: str) -> None:
        """Set the final status of the chain's run and of stages that did not finish; say what is still to be sent."""
        ended = False
        try:
            for name, run in self.state["stages"].items():
                if name not in self.state["ended"] and status != "FINISHED":
                    self.client.set_terminated(run, status)
            self.client.set_terminated(self.state["parent"], status)
            ended = True
        except Exception as error:
            self.warn("ending the runs", error)
        if lacks := ", ".join([*self.undelivered(), *([] if ended else ["how it ended"])]):
            print(
                f"warning: MLflow at {self.uri} lacks parts of the run ({lacks}); nothing is lost: when it answers "
                f"again, send them with\n  python -m pipelines.replay {self.folder}",
                file=sys.stderr,
            )

    def resume(self) -> None:
        """Mark the chain's run, and those of its unfinished stages, as running."""
        try:
            names = [name for name in self.state["stages"] if name not in self.state["ended"]]
            for run in [self.state["parent"], *(self.state["stages"][name] for name in names)]:
                self.client.update_run(run, "RUNNING")
        except Exception as error:
            self.warn("resuming the runs", error)

    def warn(self, doing: str, error: Exception) -> None:
        """A tracking server that fails costs a line on the screen, never the training."""
        print(f"warning: MLflow at {self.uri}, {doing}: {first_line(error)}", file=sys.stderr, flush=True)

    def ui_command(self) -> str:
        """The line that opens the MLflow page."""
        if self.uri.startswith(("http:", "https:")):
            return f"MLflow: {self.uri}"
        return f"uv run mlflow ui --backend-store-uri {self.uri}"


class Sender(threading.Thread):
    """Delivers stages to MLflow as they grow; tries again every `RETRY_S` while the server is away."""

    def __init__(self, tracker: Tracker, places: Sequence[Path]) -> None:
        super().__init__(name="mlflow-sender", daemon=True)
        self.tracker, self.places = tracker, places
        self.ending = threading.Event()
        self.away = False

    def run(self) -> None:
        while not self.ending.wait(RETRY_S if self.away else POLL_S):
            self.deliver()
        self.deliver()

    def deliver(self) -> None:
        """All stages that have begun, in their order."""
        try:
            for place in self.places:
                if (place / "record.jsonl").exists():
                    self.tracker.deliver(place)
        except Exception as error:  # whatever a client can raise
            if not self.away:
                self.tracker.warn("sending", error)
                print("  training goes on; the record keeps everything and is sent when it is back", file=sys.stderr)
            self.away = True
        else:
            if self.away:
                print(f"MLflow at {self.tracker.uri} is back and has everything", file=sys.stderr)
            self.away = False

    def stop(self) -> None:
        """Take what is still there, then end."""
        self.ending.set()
        self.join()


def final_weights(place: Path) -> Path:
    """The best checkpoint of a finished stage, or its last where it has no scores; in its folder, wherever that is."""
    done = json.loads((place / "done.json").read_text())
    return place / "best.pt" if done["best_checkpoint"] else place / "checkpoints" / Path(done["checkpoint"]).name


def metric_names(classes: Sequence[str]) -> list[str]:
    """Names of the classes' IoU as MLflow takes them: it refuses all but letters, digits and a few signs."""
    plain = [re.sub(r"[^\w.\- ]", "_", name).strip(".")[:200] or "_" for name in classes]
    return [f"{name} {i}" if plain.count(name) > 1 else name for i, name in enumerate(plain)]


def send_lines(client: Any, run: str, place: Path, lines: list[dict[str, Any]]) -> None:
    """Metrics of a record's lines in batches, then pictures and tables of each validation."""
    from mlflow.entities import Metric

    metrics, about = [], read_about(place)
    names = metric_names(about["classes"])
    for line in lines:
        values = {METRICS[line["kind"]][k]: v for k, v in line.items() if k in METRICS.get(line["kind"], {})}
        if line["kind"] == "system":
            values = {f"system/{k}": v for k, v in line["values"].items()}
        if line["kind"] == "val":
            values |= {f"val/IoU/{name}": v for name, v in zip(names, line["iou"], strict=True)}
            values = {k: v * 100 for k, v in values.items() if v == v}  # percent; absent classes have none
        metrics += [Metric(k, float(v), line["time"], line["step"]) for k, v in values.items()]
    for first in range(0, len(metrics), 1000):
        client.log_batch(run, metrics=metrics[first : first + 1000])
    for line in lines:
        if line["kind"] == "val":
            send_validation(client, run, place, line, about)


def send_validation(client: Any, run: str, place: Path, line: dict[str, Any], about: dict[str, Any]) -> None:
    """Overlays, confusion matrix and IoU bars of one validation; sent again they take the place of the first."""
    classes, step = about["classes"], f"step-{line['step']:08d}"
    how = f"{line['rows']} rows, {about['protocol']}"
    title = f"{place.name}, step {line['step']}: mIoU {line['miou'] * 100:.2f} %\n{how}"
    for picture in line["overlays"]:
        client.log_artifact(run, str(place / picture), f"overlays/{Path(picture).parent.name}")
    counts = np.load(place / line["counts"])
    client.log_figure(run, figures.confusion_figure(counts, classes, title), f"confusion/{step}.png")
    client.log_figure(run, figures.iou_figure(line["iou"], classes, title), f"iou/{step}.png")
    percent = [None if v != v else round(v * 100, 2) for v in line["iou"]]
    table = {"class": list(classes), "IoU_percent": percent, "true_pixels": counts.sum(1).tolist(),
             "predicted_pixels": counts.sum(0).tolist()}  # fmt: skip
    name = f"iou_table/{step}.json"
    if name not in {file.path for file in client.list_artifacts(run, "iou_table")}:  # it would be added to
        client.log_table(run, data=table, artifact_file=name)


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
            file.write(json.dumps({"kind": "system", "step": now // 1000, "time": now, "values": values}) + "\n")


def read_about(place: Path) -> dict[str, Any]:
    """What is known of a stage before it starts: `params`, `tags`, `classes`, `protocol`, `steps`."""
    return json.loads((place / "about.json").read_text())


def cut(text: str) -> str:
    """A parameter's value as MLflow takes it; longer ones end with where the whole value stands."""
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
