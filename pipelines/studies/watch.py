"""What becomes of a study's trials, on the screen and in their folders; what they wait for, and why they died."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipelines.base.text import clock, plain
from pipelines.cluster.waiting import QUIET_S, TELL_S, free
from pipelines.recipes.tasks import metric_of
from pipelines.runs.record import read_record
from pipelines.runs.screen import size
from pipelines.studies.study import Trial
from pipelines.studies.trial import SAID, TrialContext, TrialEnd, end, ended, timeline


def name_of(trial: Any) -> str:
    """Our name of a Tune trial."""
    return trial.config["name"]


def why(trial: Any) -> str:
    """The last line of a Tune trial's error."""
    lines = plain(str(trial.get_error() or "")).strip().splitlines()
    return lines[-1] if lines else "it died"


class Watch:
    """Says on the screen what becomes of the trials, a line per event, and notes those that end early or fail."""

    def __init__(
        self, place: TrialContext, look_up: Callable[[str], Trial], tracker: Any, left: int, at_once: int
    ) -> None:
        """Args:
        look_up: the trial of a name.
        tracker: is told of each trial that begins, by its `add`.
        left: how many trials this run is to end.
        at_once: how many of them run at the same time.
        """
        self.place, self.look_up, self.tracker, self.left, self.at_once = place, look_up, tracker, left, at_once
        self.began: dict[str, float] = {}  # of those that run
        self.seconds: list[float] = []
        self.read: dict[str, int] = {}  # bytes of their timelines
        self.idle, self.told = 0.0, 0.0  # since when no trial runs although one could, and when that was last told
        self.counts = dict.fromkeys(("done", "stopped", "failed"), 0)
        self.closing = threading.Event()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing to pickle: Tune writes its callbacks to disk before it starts, and nobody reads them."""
        return {}

    def started(self, name: str) -> None:
        again = " again, from its last checkpoint" if name in self.began else ""
        self.began[name] = time.time()
        self.read.setdefault(name, size(self.place.files(name).marks))
        timeline(self.place.trial(name), "started")
        self.tracker.add(self.look_up(name))
        self.say(name, f"starts{again}")

    def reported(self, name: str, result: Mapping[str, Any]) -> None:
        if "recorded" in result and not result.get("done"):
            timeline(self.place.trial(name), "told", recorded=result["recorded"], progress=result["progress"])
        if "miou" in result and result["progress"] < 1 and not result.get("done"):
            metric = metric_of(self.look_up(name).recipe.task)
            self.say(name, f"{result['progress']:.0%} of its steps, {metric} {result['miou'] * 100:.2f} %")

    def completed(self, name: str, result: Mapping[str, Any]) -> None:
        """The trial's function returned, or the rule stopped it."""
        trial, folder = self.look_up(name), self.place.trial(name)
        self.hear(name)
        if ended(trial.recipe, folder) is None:
            if self.closing.is_set():
                self.began.pop(name, None)
                self.say(name, "waits, its checkpoint written")
                return
            end(folder, "stopped", progress=result["progress"], miou=result["miou"])
        self.count(name)

    def look(self, pending: Sequence[str]) -> None:
        """Say what the trials that run have to say, and what those wait for that do not.

        Args:
            pending: trials that Tune wants to start.
        """
        for name in list(self.began):
            self.hear(name)
        now = time.monotonic()
        if self.began or not pending:
            self.idle = 0.0
            return
        self.idle = self.idle or now
        if now - self.idle >= QUIET_S and now - self.told >= TELL_S:
            self.told, cpus = now, self.place.sizes.cpus
            self.say(pending[0], f"waits for its process, which needs {cpus:g} CPU; free are {free()}")

    def hear(self, name: str) -> None:
        """Say what a trial noted for the screen: failures of its workers, a wait for room."""
        lines, self.read[name] = read_record(self.place.files(name).marks, self.read.get(name, 0))
        for line in lines:
            if line["what"] == SAID:
                self.say(name, line["text"])

    def died(self, name: str, why: str) -> None:
        """It is tried again."""
        self.hear(name)
        self.say(name, f"died: {why}")

    def failed(self, name: str, why: str) -> None:
        """It died more often than it is retried."""
        self.hear(name)
        end(self.place.trial(name), "failed", why=why)
        self.count(name)

    def count(self, name: str) -> None:
        """Take note of an end."""
        timeline(self.place.trial(name), "ended")
        recipe = self.look_up(name).recipe
        how = ended(recipe, self.place.trial(name)) or TrialEnd("done")
        took = time.time() - self.began.pop(name, time.time())
        self.counts[how.status] += 1
        self.seconds.append(took)
        self.left -= 1
        score = f", {metric_of(recipe.task)} {how.miou * 100:.2f} %" if how.miou is not None else ""
        part = f" early, after {how.progress or 0:.0%} of its steps" if how.status == "stopped" else ""
        why = f": {how.why}" if how.why else ""
        self.say(name, f"{how.status}{part}{score}, {clock(took)}{why}", True)

    def say(self, name: str, text: str, summary: bool = False) -> None:
        """A line; with what is left of the study after an end."""
        print(f"{name:>24}  {text}", flush=True)
        if summary and self.left:
            eta = clock(self.left * sum(self.seconds) / len(self.seconds) / self.at_once)
            counts = ", ".join(f"{number} {what}" for what, number in self.counts.items() if number)
            print(f"{'':>24}  {len(self.began)} running, {counts}, {self.left} not ended, ETA {eta}", flush=True)

    def callback(self) -> Any:
        """This, as Tune calls it."""
        from ray.tune.progress_reporter import TrialProgressCallback

        class Events(TrialProgressCallback):  # Tune would add one of its own, which prints
            def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
                watch.started(name_of(trial))

            def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
                watch.reported(name_of(trial), result)

            def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
                watch.completed(name_of(trial), trial.last_result or {})

            def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
                watch.died(name_of(trial), why(trial))

            def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
                watch.failed(name_of(trial), why(trial))

            def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
                watch.look([name_of(trial) for trial in trials if trial.status == "PENDING"])

        watch = self
        return Events()
