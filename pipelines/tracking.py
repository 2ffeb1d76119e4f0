"""MLflow, and the only importer of it: a parent run per chain, a child per stage, fed from the local record.

The record (record.jsonl) is the truth. A `Follower` in the driver reads it while the workers write, prints progress
and sends it on; how far it sent is kept in the run's folder. So a resumed run continues the same MLflow runs without
a doubled step, and a server that was away is caught up with.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import figures
from pipelines.door import ROOT, SetupError
from pipelines.recipe import Recipe, flatten, to_page, to_yaml
from pipelines.record import read_record

POLL_S = 0.5
PARAM_CHARS = 6000  # MLflow cuts longer values silently; whole values stand in recipe.yaml
METRICS = {
    "train": {"loss": "train/loss", "lr": "train/lr", "epoch": "train/epoch", "images_per_s": "speed/images_per_s",
              "data_wait": "speed/data_wait_share", "gpu_mib": "speed/gpu_peak_mib"},
    "val": {"miou": "val/mIoU", "accuracy": "val/pixel_accuracy", "fwiou": "val/fwIoU"},
}  # fmt: skip


def default_uri(output: Path) -> str:
    """MLFLOW_TRACKING_URI, else an sqlite file below the output folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{output / 'mlflow.db'}"


class Tracker:
    """The MLflow runs of one chain. Creating them fails early; what comes later never stops a training."""

    def __init__(self, recipe: Recipe, output: Path, folder: Path) -> None:
        """Find the runs of `folder` (a resume) or create the parent.

        Raises:
            SetupError: the tracking server does not answer.
        """
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        import mlflow

        for name in ("mlflow.store.db.utils", "mlflow.system_metrics.system_metrics_monitor", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.uri = recipe.tracking or default_uri(output)
        self.recipe, self.output, self.path = recipe, output, folder / "mlflow.json"
        known = json.loads(self.path.read_text()) if self.path.exists() else {}
        fresh: dict[str, Any] = {"uri": self.uri, "stages": {}, "sent": {}}
        self.state: dict[str, Any] = known if known.get("uri") == self.uri else fresh
        try:
            self.client = mlflow.MlflowClient(tracking_uri=self.uri)
            if "parent" not in self.state:
                self.experiment = self.find_experiment()
                self.state["parent"] = self.create(str(recipe.name), {}, flatten(to_page(recipe)))
                self.client.log_text(self.state["parent"], to_yaml(recipe), "recipe.yaml")
                self.save()
            else:
                self.experiment = self.client.get_run(self.state["parent"]).info.experiment_id
                self.client.update_run(self.state["parent"], "RUNNING")
        except Exception as error:
            raise SetupError(
                f"MLflow at {self.uri} cannot be used: {str(error).splitlines()[0]} Start the server, or unset "
                "MLFLOW_TRACKING_URI (and the recipe's `tracking`) to log into a local sqlite file."
            ) from error

    def find_experiment(self) -> str:
        """Id of the recipe's experiment, created when missing; artifacts of a local store lie beside it."""
        found = self.client.get_experiment_by_name(self.recipe.experiment)
        if found is not None:
            return found.experiment_id
        local = self.uri.startswith("sqlite:")
        place = (self.output / "mlartifacts" / self.recipe.experiment).as_uri() if local else None
        return self.client.create_experiment(self.recipe.experiment, artifact_location=place)

    def create(self, name: str, tags: dict[str, str], params: dict[str, Any]) -> str:
        """A new run; returns its id."""
        from mlflow.entities import Param

        run = self.client.create_run(self.experiment, run_name=name, tags=tags | git_tags())
        values = [Param(key, str(value)[:PARAM_CHARS]) for key, value in params.items()]
        for first in range(0, len(values), 100):
            self.client.log_batch(run.info.run_id, params=values[first : first + 100])
        return run.info.run_id

    def save(self) -> None:
        """Keep run ids and offsets beside the run."""
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.state, indent=1))
        temporary.replace(self.path)

    def open_stage(self, stage: str, params: dict[str, Any], tags: dict[str, str]) -> str:
        """Id of the stage's run, a child of the chain's; the same one after a resume."""
        if stage not in self.state["stages"]:
            tags = tags | {"mlflow.parentRunId": self.state["parent"]}
            self.state["stages"][stage] = self.create(f"{self.recipe.name}/{stage}", tags, params)
            self.save()
        else:
            self.client.update_run(self.state["stages"][stage], "RUNNING")
        return self.state["stages"][stage]

    @contextlib.contextmanager
    def follow(self, parts: Sequence[Part]) -> Iterator[None]:
        """Print and send the records of the stages, one after the other, while the body trains them."""
        follower = Follower(self, parts)
        follower.start()
        status = "FAILED"
        try:
            yield
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            follower.stop(status)
            if status != "FINISHED":
                self.end(self.state["parent"], status)
        if follower.error:
            raise follower.error

    def finish_stage(self, stage: str, checkpoint: Path | None, numbers: dict[str, float]) -> None:
        """Upload the checkpoint, put the final numbers on the parent, end the stage's run."""
        run = self.state["stages"][stage]
        with self.tolerate("uploading the checkpoint"):
            if checkpoint:
                self.client.log_artifact(run, str(checkpoint), "checkpoint")
            for key, value in numbers.items():
                self.client.log_metric(self.state["parent"], f"{stage}/{key}", value)
        self.end(run, "FINISHED")

    def end(self, run: str, status: str) -> None:
        """Set a run's final status."""
        with self.tolerate("ending a run"):
            self.client.set_terminated(run, status)

    @contextlib.contextmanager
    def tolerate(self, doing: str) -> Iterator[None]:
        """A tracking server that fails costs a line on the screen, never the training."""
        try:
            yield
        except Exception as error:
            print(f"warning: MLflow at {self.uri}, {doing}: {str(error).splitlines()[0]}", file=sys.stderr)

    def ui_command(self) -> str:
        """The line that opens the MLflow page."""
        if self.uri.startswith(("http:", "https:")):
            return f"MLflow: {self.uri}"
        return f"uv run mlflow ui --backend-store-uri {self.uri}"


@dataclass(frozen=True)
class Part:
    """A stage to follow: its record, the file that ends it, and what to do then.

    `about` holds what tables and pictures need: `classes`, `protocol`, `steps`, `params`, `tags`.
    """

    stage: str
    record: Path
    outcome: Path
    about: dict[str, Any]
    finish: Callable[[], None]


class Follower(threading.Thread):
    """Reads the stages' records as they grow: each line goes to the screen once, and to MLflow once."""

    def __init__(self, tracker: Tracker, parts: Sequence[Part]) -> None:
        super().__init__(name="follower", daemon=True)
        self.tracker, self.parts = tracker, parts
        # what stands in a record before this training was shown by the one before it
        self.seen = {part.stage: part.record.stat().st_size if part.record.exists() else 0 for part in parts}
        self.ending = threading.Event()
        self.status = "FAILED"  # of a stage that is not finished when the training ends
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            for part in self.parts:
                if not self.follow_part(part):
                    return
        except Exception as error:  # raised again in the driver's own thread
            self.error = error

    def stop(self, status: str) -> None:
        """Take what is still there, then end."""
        self.status = status
        self.ending.set()
        self.join()

    def follow_part(self, part: Part) -> bool:
        """Follow one stage to its end; whether it was finished."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self.run_id = self.tracker.open_stage(part.stage, part.about["params"], part.about["tags"])
        self.stage, self.record, self.about, self.failed = part.stage, part.record, part.about, False
        self.shown = self.seen[part.stage]
        monitor = SystemMetricsMonitor(
            self.run_id, sampling_interval=5, resume_logging=True, tracking_uri=self.tracker.uri
        )
        monitor.start()
        try:
            while not part.outcome.exists() and not self.ending.wait(POLL_S):
                self.step()
            self.failed = False
            self.step()
        finally:
            monitor.finish()
        if part.outcome.exists():
            part.finish()
            return True
        self.tracker.end(self.run_id, self.status)
        return False

    def step(self) -> None:
        """Show and send what is new."""
        lines, self.shown = read_record(self.record, self.shown)
        for line in lines:
            print(describe(self.stage, line, self.about), flush=True)
        sent = self.tracker.state["sent"].get(self.stage, 0)
        lines, end = read_record(self.record, sent)
        if not lines or self.failed:
            return
        try:
            self.send(lines)
            self.tracker.state["sent"][self.stage] = end
            self.tracker.save()
        except Exception as error:  # whatever a client can raise; the record keeps everything
            self.failed = True  # until the stage's end: a dead server must not stop the screen at each poll
            print(
                f"warning: MLflow at {self.tracker.uri} does not take the metrics: {str(error).splitlines()[0]} "
                f"They stand in {self.record} and are sent when this stage ends or resumes.",
                file=sys.stderr,
            )

    def send(self, lines: list[dict[str, Any]]) -> None:
        """Metrics in one batch; pictures and tables of each validation."""
        from mlflow.entities import Metric

        metrics = []
        for line in lines:
            values = {METRICS[line["kind"]][k]: v for k, v in line.items() if k in METRICS.get(line["kind"], {})}
            if line["kind"] == "val":
                values |= {f"val/IoU/{name}": v for name, v in zip(self.about["classes"], line["iou"], strict=True)}
                values = {k: v * 100 for k, v in values.items() if v == v}  # percent; absent classes have none
            metrics += [Metric(k, float(v), line["time"], line["step"]) for k, v in values.items()]
        for first in range(0, len(metrics), 1000):
            self.tracker.client.log_batch(self.run_id, metrics=metrics[first : first + 1000])
        for line in lines:
            if line["kind"] == "val":
                self.send_pictures(line)

    def send_pictures(self, line: dict[str, Any]) -> None:
        """Overlays, per-class table, confusion matrix and IoU bars of one validation."""
        client, classes, step = self.tracker.client, self.about["classes"], f"step-{line['step']:08d}"
        how = f"{line['rows']} rows, {self.about['protocol']}"
        title = f"{self.stage}, step {line['step']}: mIoU {line['miou'] * 100:.2f} %\n{how}"
        for picture in line["overlays"]:
            client.log_artifact(self.run_id, picture, f"overlays/{Path(picture).parent.name}")
        counts = np.load(line["counts"])
        client.log_figure(self.run_id, figures.confusion_figure(counts, classes, title), f"confusion/{step}.png")
        client.log_figure(self.run_id, figures.iou_figure(line["iou"], classes, title), f"iou/{step}.png")
        percent = [None if v != v else round(v * 100, 2) for v in line["iou"]]
        table = {"class": list(classes), "IoU_percent": percent, "true_pixels": counts.sum(1).tolist(),
                 "predicted_pixels": counts.sum(0).tolist()}  # fmt: skip
        client.log_table(self.run_id, data=table, artifact_file=f"iou_table/{step}.json")


def describe(stage: str, line: dict[str, Any], about: dict[str, Any]) -> str:
    """A line of the record for the screen."""
    head = f"{stage:>18}"
    if line["kind"] == "train":
        gpu = f"  {line['gpu_mib']:.0f} MiB" if "gpu_mib" in line else ""
        return (
            f"{head}  step {line['step']:>5}/{about['steps']}  epoch {line['epoch']:.1f}  loss {line['loss']:.4f}  "
            f"lr {line['lr']:.2e}  {line['images_per_s']:.1f} images/s  data wait {line['data_wait']:.0%}{gpu}  "
            f"ETA {clock(line['eta_s'])}"
        )
    if line["kind"] == "val":
        return (
            f"{head}  step {line['step']:>5}/{about['steps']}  val mIoU {line['miou'] * 100:.2f} %  pixel accuracy "
            f"{line['accuracy'] * 100:.2f} %  ({line['rows']} rows, {about['protocol']})"
        )
    return f"{head}  {line.get('text', '')}"


def clock(seconds: float) -> str:
    """h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


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
