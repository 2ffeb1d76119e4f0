"""A study in MLflow: a parent, a child per trial, and a grandchild per stage where a trial has several stages.

MLflow knows four ends. A trial that was stopped early, or that waits for the study to go on, is KILLED there, with what
happened in its tag `trial`; one that failed for good is FAILED.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.base.files import write_json
from pipelines.base.polling import Polling
from pipelines.recipes.recipe import Recipe, flatten
from pipelines.runs.mlflow_client import KEY, PARENT, create_run, default_uri, find_experiment, first_line, open_client
from pipelines.runs.results import Result, final_weights
from pipelines.runs.tracker import Tracker
from pipelines.studies.study import StudyPlan, Trial
from pipelines.studies.trial import TrialContext, TrialEnd, ended

POLL_S = 1.0
RETRY_S = 15.0
STATUSES = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED", "waiting": "KILLED"}


class StudyTracker:
    """Sends the trials' records while they grow. Creating it fails early; what comes later never stops a study."""

    def __init__(self, plan: StudyPlan, base: Recipe, place: TrialContext) -> None:
        """Find the study's run in its folder, or create it.

        Raises:
            SetupError: the tracking server does not answer.
        """
        self.plan, self.place, self.path = plan, place, place.study.tracking
        self.uri = base.tracking or default_uri(place.output)
        known = json.loads(self.path.read_text()) if self.path.exists() else {}
        elsewhere = known.get("uri") not in (None, self.uri)
        known = known if known.get("uri") == self.uri else {"uri": self.uri, "key": uuid.uuid4().hex}
        with open_client(self.uri) as self.client:
            if "run" not in known:
                if not elsewhere:  # else what is noted of another server stays until this one has the run
                    write_json(self.path, known)
                experiment = find_experiment(self.client, base.experiment, self.uri, place.output)
                tags = {KEY: known["key"], "mlflow.note.content": plan.study.title, "study": plan.name}
                params = {"seeds": list(plan.study.seeds), "recipe": plan.study.recipe} | fixed(base)
                known["run"] = create_run(self.client, experiment, plan.name, tags, params)
                write_json(self.path, known)
            self.client.update_run(known["run"], "RUNNING")
        self.run_id: str = known["run"]
        self.trials: dict[str, Trial] = {}
        self.trackers: dict[str, Tracker] = {}
        self.lock, self.away = threading.Lock(), False

    def add(self, trial: Trial) -> None:
        """A trial whose record may grow from now on, or is there already and has not arrived."""
        files = self.place.files(trial.name)
        state = json.loads(files.tracking.read_text()) if files.tracking.exists() else {}
        end = ended(trial.recipe, files.path)
        if end and state.get("uri") == self.uri and state.get("settled") == end.status:
            return
        with self.lock:
            self.trials[trial.name] = trial

    def sending(self) -> Polling:
        """While its body runs, what grows is sent."""
        return Polling(self.deliver, lambda: RETRY_S if self.away else POLL_S, "mlflow-study", last=True)

    def deliver(self) -> None:
        """What MLflow lacks of each trial that has begun; a trial that has ended and arrived is not looked at again."""
        with self.lock:
            trials = list(self.trials.values())
        try:
            for trial in trials:
                self.deliver_trial(trial)
        except Exception as error:  # whatever a client can raise
            if not self.away:
                print(
                    f"warning: MLflow at {self.uri}: {first_line(error)}; the study goes on",
                    file=sys.stderr,
                    flush=True,
                )
            self.away = True
        else:
            self.away = False

    def deliver_trial(self, trial: Trial) -> None:
        """One trial's records, and its end once it has one."""
        files = self.place.files(trial.name)
        end = ended(trial.recipe, files.path)
        places = [files.stage(stage.name) for stage in trial.recipe.stages]
        if not (begun := [place for place in places if place.record.exists()]) and end is None:
            return
        tracker = self.tracker_of(trial, files.path)
        for place in begun:
            tracker.deliver(place)
        if end is not None:
            self.settle(tracker, end)
            del self.trackers[trial.name]
            with self.lock:
                del self.trials[trial.name]

    def tracker_of(self, trial: Trial, folder: Path) -> Tracker:
        """The trial's run, a child of the study's."""
        if trial.name not in self.trackers:
            tags = {PARENT: self.run_id, "variant": trial.variant, "seed": str(trial.seed)}
            recipe, output = trial.recipe, self.place.output
            self.trackers[trial.name] = tracker = Tracker(recipe, output, folder, self.uri, tags)
            tracker.resume()
        return self.trackers[trial.name]

    def settle(self, tracker: Tracker, end: TrialEnd) -> None:
        """How a trial ended: status, tag, mIoU in percent."""
        run, status = tracker.state["parent"], STATUSES[end.status]
        if end.miou is not None:
            self.client.log_metric(run, "mIoU", end.miou * 100, timestamp=end.time, step=0)
        why = f": {end.why}" if end.why else f" at {end.progress:.0%}" if end.progress is not None else ""
        self.client.set_tag(run, "trial", f"{end.status}{why}"[:5000])
        tracker.settle(status)
        tracker.state["settled"] = end.status
        tracker.save()

    def close(self, files: Mapping[str, Path], best: str | None, status: str) -> None:
        """Put table, pictures, page and the best trial's whereabouts on the study's run, and end it.

        Args:
            files: artifacts by the folder they go to.
            best: name of the best trial; None where none was scored.
            status: MLflow's, of the study.
        """
        try:
            for name, path in files.items():
                self.client.log_artifact(self.run_id, str(path), name.rpartition("/")[0] or None)
            if best:
                self.name_best(best)
            for tracker in self.trackers.values():  # begun and not ended: the study was interrupted
                self.settle(tracker, TrialEnd("waiting"))
            self.client.set_terminated(self.run_id, status)
        except Exception as error:
            print(f"warning: MLflow at {self.uri}, ending the study: {first_line(error)}", file=sys.stderr, flush=True)

    def name_best(self, best: str) -> None:
        """Which trial did best, and where its checkpoint lies: an artifact of its run, and a file."""
        files = self.place.files(best)
        state = json.loads(files.tracking.read_text())
        stage, run = list(state["stages"].items())[-1]
        path = final_weights(files.stage(stage))
        uri = self.client.get_run(run).info.artifact_uri
        tags = {"best.trial": best, "best.run": run, "best.checkpoint": f"{uri}/checkpoint/{path.name}"}
        for key, value in (tags | {"best.checkpoint_file": str(path)}).items():
            self.client.set_tag(self.run_id, key, value)
        self.client.log_text(self.run_id, json.dumps(tags | {"file": str(path)}, indent=1), "best_trial.json")
        self.client.log_metric(self.run_id, "best/mIoU", (Result.read(files.stage(stage).result).miou or 0.0) * 100)


def fixed(base: Recipe) -> dict[str, Any]:
    """The base recipe's keys, as parameters of the study."""
    page = {k: v for k, v in dataclasses.asdict(base).items() if k not in ("seed", "name")}
    return flatten(json.loads(json.dumps(page)), "base")
