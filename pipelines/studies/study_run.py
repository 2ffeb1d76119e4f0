"""A study in MLflow: a parent, a child per trial, and a grandchild per stage where a trial has several stages.

MLflow knows four ends. A trial that was stopped early, or that waits for the study to go on, is KILLED there, with what
happened in its tag `trial`; one that failed for good is FAILED. The study's own numbers are those of its table: means,
intervals and gains, no single seed's score.
"""

from __future__ import annotations

import json
import shlex
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipelines.base.errors import InputError, users_message
from pipelines.base.files import to_json
from pipelines.base.polling import Polling
from pipelines.recipes.reading import load_recipe
from pipelines.recipes.tasks import metric_of
from pipelines.runs.folder import RunFolder, StudyFolder
from pipelines.runs.mlflow_client import KEY, PARENT, Point, answering, default_uri, send_metrics, set_tags
from pipelines.runs.mlflow_note import send_note
from pipelines.runs.mlflow_runs import create_run
from pipelines.runs.provenance import origin
from pipelines.runs.results import Result, final_weights
from pipelines.runs.tracked import Tracked, last_address
from pipelines.runs.tracker import Tracker
from pipelines.studies.study import Trial
from pipelines.studies.table import metrics_of
from pipelines.studies.trial import TrialEnd, ended

POLL_S = 1.0
RETRY_S = 15.0
STATUSES = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED", "waiting": "KILLED"}


class StudyRun(Tracked):
    """The MLflow runs of a study, from the notes in its folder.

    Attributes:
        state: also the `about` that the study's run is made of.
    """

    top = "run"

    def __init__(self, study: StudyFolder, output: Path, uri: str, about: Mapping[str, Any]) -> None:
        """Read the notes on the study's run; MLflow is not asked before `connect`.

        Args:
            study: its folder.
            output: where the default store and its artifacts are.
            uri: the tracking server.
            about: `name`, `title`, `experiment`, `tags` and `params` of its run.

        Raises:
            SetupError: MLflow can never be at the address.
        """
        super().__init__(study.tracking, uri)
        self.study, self.output = study, output
        self.state["about"] = dict(about)
        self.trials: dict[str, Trial] = {}
        self.trackers: dict[str, Tracker] = {}
        self.lock = threading.Lock()
        if self.ours:
            self.save()

    def experiment_name(self) -> str:
        return self.state["about"]["experiment"]

    def goes_on(self) -> bool:
        return "end" not in self.state

    def create_top(self) -> None:
        """The study's run."""
        about = self.state["about"]
        tags = {**about["tags"], KEY: self.state["key"], **origin(self.study.origin)}
        self.state["run"] = create_run(
            self.client, str(self.experiment), about["name"], tags, about["params"], self.state.get("began")
        )
        self.describe()

    def describe(self) -> None:
        """Its note: the question, the table once there is one, how to run it again."""
        shown = self.study.table("md")
        error, name, page = self.state.get("end", {}).get("error"), self.study.path.name, self.study.page
        words = shlex.join(["python", "-m", "pipelines.ablate", str(page), "--name", f"{name}-again"])
        title = self.state["about"].get("title", name)
        parts = [
            f"**Failed:** {error}" if error else "",
            shown.read_text().strip() if shown.exists() else f"# {title}\n\nIts trials are below; no table yet.",
            f"**Reproduce**; the page is the artifact `{page.name}`:\n\n```\n{words}\n```",
        ]
        send_note(self.client, self.run_id, "\n\n".join(filter(None, parts)))

    def add(self, trial: Trial) -> None:
        """A trial whose record may grow from now on, or is there already and has not arrived."""
        if not self.arrived(trial):
            with self.lock:
                self.trials[trial.name] = trial

    def arrived(self, trial: Trial) -> bool:
        """Whether a trial has ended and MLflow has all of it."""
        files = self.study.trial(trial.name)
        state = json.loads(files.tracking.read_text()) if files.tracking.exists() else {}
        end = ended(trial.recipe, files.path)
        return end is not None and state.get("uri") == self.uri and state.get("settled") == end.status

    def sending(self) -> Polling:
        """While its body runs, what grows is sent."""
        self.state.pop("end", None)
        self.state.setdefault("began", int(time.time() * 1000))
        self.try_to(self.connect, "  the study goes on; the records keep everything and are sent when MLflow is back")
        return Polling(self.deliver, lambda: POLL_S if self.ready else RETRY_S, "mlflow-study", last=True)

    def try_to(self, act: Callable[[], None], after: str = "") -> bool:
        """Whether it could be done; a reason why not is printed once, with its consequence."""
        try:
            act()
        except Exception as error:  # whatever a client can raise
            self.warn(error, after)
            return False
        return True

    def deliver(self) -> None:
        """What MLflow lacks of each trial that has begun; a trial that has ended and arrived is not looked at again."""
        self.try_to(self.deliver_all, "  the study goes on")

    def deliver_all(self) -> None:
        """The same.

        Raises:
            Exception: what MLflow or the network raise.
        """
        away = not self.ready
        self.connect()
        with self.lock:
            trials = list(self.trials.values())
        for trial in trials:
            self.deliver_trial(trial)
        if away and self.told:
            self.say("it is back and has everything so far")
            self.told = ""

    def deliver_trial(self, trial: Trial) -> None:
        """One trial's records, and its end once it has one."""
        files = self.study.trial(trial.name)
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
        tags = {PARENT: self.run_id, "variant": trial.variant, "seed": str(trial.seed)}
        tracker = self.trackers.get(trial.name)
        if tracker is None or tracker.tags != tags:  # the study's run was made again
            tracker = Tracker(trial.recipe, self.output, folder, self.uri, tags, origin(self.study.origin))
            self.trackers[trial.name] = tracker
        tracker.live = True
        tracker.connect()
        return tracker

    def settle(self, tracker: Tracker, end: TrialEnd) -> None:
        """How a trial ended: status, tag, score in percent."""
        error = tracker.folder.error
        text = error.read_text() if end.status == "failed" and error.exists() else end.why
        how = {"status": STATUSES[end.status], "time": end.time or None} | (
            {"error": end.why, "text": text} if end.why else {}
        )
        tracker.connect()
        run = tracker.state["parent"]
        if end.miou is not None:
            metric = metric_of(tracker.recipe.task)
            self.client.log_metric(run, metric, end.miou * 100, timestamp=end.time, step=0)
        why = f": {end.why}" if end.why else f" at {end.progress:.0%}" if end.progress is not None else ""
        set_tags(self.client, run, {"trial": f"{end.status}{why}"})
        tracker.send_end(how)
        tracker.state["settled"] = end.status
        tracker.save()

    def close(self, files: Mapping[str, Path], best: str | None, status: str) -> None:
        """Put table, its numbers, pictures, page and the best trial's whereabouts on the study's run, and end it.

        Where an error is on its way up, as in a `finally`, the run carries it.

        Args:
            files: artifacts by the folder they go to.
            best: name of the best trial; None where none was scored.
            status: MLflow's, of the study.
        """
        top = self.study.path
        places = {n: str(p.relative_to(top) if p.is_relative_to(top) else p) for n, p in files.items()}
        self.state["end"] = {"status": status, "files": places, "best": best, "time": int(time.time() * 1000)}
        if (error := sys.exception()) is not None:
            self.state["end"] |= {"error": users_message(error) or str(error) or type(error).__name__}
            self.state["end"] |= {"text": "".join(traceback.format_exception(error))}
        if self.ours:
            self.save()
        told = self.try_to(self.send_end)
        with self.lock:
            lacks = sorted(self.trials) if not told else []
        if not told:
            count = f"{len(lacks)} trial(s) and the table" if lacks else "the table"
            print(
                f"warning: MLflow at {self.uri} lacks parts of the study ({count}); nothing is lost: when it answers "
                f"again, send them with\n  python -m pipelines.replay {shlex.quote(str(self.study.path))}",
                file=sys.stderr,
            )

    def send_end(self) -> None:
        """What `close` noted.

        Raises:
            Exception: what MLflow or the network raise.
        """
        self.deliver_all()
        end = self.state["end"]
        for name, place in end["files"].items():
            self.client.log_artifact(self.run_id, str(self.study.path / place), name.rpartition("/")[0] or None)
        table = self.study.table("json")
        if table.exists():
            values = metrics_of(json.loads(table.read_text()))
            send_metrics(self.client, self.run_id, [Point(k, v, end["time"], 0) for k, v in values.items()])
        if end["best"]:
            self.name_best(end["best"])
        for tracker in self.trackers.values():  # begun and not ended: the study was interrupted
            self.settle(tracker, TrialEnd("waiting"))
        if "text" in end:
            self.client.log_text(self.run_id, end["text"], RunFolder(self.study.path).error.name)
        self.describe()
        set_tags(self.client, self.run_id, {"error": end.get("error")})
        self.client.set_terminated(self.run_id, end["status"], end_time=end["time"])

    def name_best(self, best: str) -> None:
        """Where the checkpoint of the trial with the highest score is: an artifact of its run, and a file.

        One seed's score says little of its variant, so it is a pointer to a checkpoint, and no metric of the study.
        """
        files = self.study.trial(best)
        state = json.loads(files.tracking.read_text())
        stage, run = list(state["stages"].items())[-1]
        path = final_weights(files.stage(stage))
        uri = self.client.get_run(run).info.artifact_uri
        tags = {"best.trial": best, "best.run": run, "best.checkpoint": f"{uri}/checkpoint/{path.name}"}
        set_tags(self.client, self.run_id, tags | {"best.checkpoint_file": str(path)})
        done = Result.read(files.stage(stage).result)
        score = None if done.miou is None else done.miou * 100
        page = tags | {"file": str(path), f"{done.metric}_percent_of_this_seed": score}
        self.client.log_text(self.run_id, to_json(page, indent=1), "best_trial.json")


def open_study(folder: Path, uri: str | None = None) -> StudyRun:
    """A study that does not run, with all its trials, from its folder.

    Args:
        folder: the study's.
        uri: the tracking server, if not the one that it logged to.

    Raises:
        InputError: the folder does not say what the study is.
        SetupError: MLflow can never be at the address.
    """
    study = StudyFolder(folder)
    about = json.loads(study.tracking.read_text()).get("about") if study.tracking.exists() else None
    if about is None:
        raise InputError(
            f"{study.tracking} is missing, or of an older version: the study's own command sends all of it"
        )
    output = folder.parents[1]
    found = StudyRun(study, output, uri or last_address(study.tracking) or default_uri(output), about)
    found.state.setdefault("end", {"status": "KILLED", "files": {}, "best": None, "time": int(time.time() * 1000)})
    for files in study.trials():
        if files.recipe.exists():
            recipe = load_recipe(files.recipe)
            variant = files.path.name.removesuffix(f"-seed{recipe.seed}")
            found.add(Trial(files.path.name, variant, recipe.seed, recipe))
    return found


def replay(study: StudyRun) -> int:
    """Send MLflow what it lacks of a study; returns of how many trials.

    Raises:
        SetupError: MLflow does not answer.
    """
    with answering(study.uri):
        missing = len(study.trials)
        study.send_end()
    return missing
