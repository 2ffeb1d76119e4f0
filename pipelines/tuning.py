"""Ray Tune runs the trials: as many at once as the cluster carries, retried when they die, stopped by a rule."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType, SimpleNamespace
from typing import Any

from pipelines.cluster import Sizes, size_workers
from pipelines.recipe import RecipeError, Workers
from pipelines.record import write_text
from pipelines.screen import clock
from pipelines.stopping import STOP, in_thread
from pipelines.study import StopEarly, Trial
from pipelines.trials import Place, end, ended, enter, points_of, timeline

RETRIES = 2
# Defaults that a user's own environment overrules; Tune reads them when a run starts.
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the record is ours
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that ends before its first validation reports nothing
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # what Tune would restore stands in the trials' folders
    "TUNE_FORCE_TRIAL_CLEANUP_S": "5",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def slots_of(workers: Workers, cores: int, gpus: int) -> int:
    """How many trials the machines have room for, by GPUs, or by cores where a trial trains on CPUs."""
    gpu = workers.gpus if workers.gpus is not None else int(gpus > 0)
    count = workers.count if workers.count is not None else (gpus if gpu else 1)
    return max(1, (gpus if gpu else cores) // max(1, count))


def room(workers: Workers, *, cores: int, gpus: int, logical: float, wanted: int | None = None) -> tuple[Sizes, int]:
    """The size of a trial, and how many run at once.

    Args:
        cores: of the cluster, as are `gpus`; `logical`: CPUs that Ray hands out.
        wanted: trials at once; by default as many as fit.

    Raises:
        RecipeError: not even one fits, or fewer than wanted, with the arithmetic.
    """
    slots = wanted or slots_of(workers, cores, gpus)
    # one trial has all of it, or its equal part: feeding tasks would else take what the next trial needs
    part = {"cores": max(1, cores // slots), "gpus": gpus // slots, "logical": logical / slots}
    try:
        sizes = size_workers(workers, **part)  # type: ignore[arg-type]
    except RecipeError as error:
        raise RecipeError(
            f"{slots} trial(s) at once on {cores} core(s) and {gpus} GPU(s) leave {part['cores']} core(s) and "
            f"{part['gpus']} GPU(s) for each: {error}"
        ) from None
    return sizes, slots


def spare(sizes: Sizes, at_once: int, cores: int) -> bool:
    """Whether processes can start beside so many trials of a size: not where these train on every core there is."""
    return bool(sizes.gpus) or at_once * max(1, sizes.count) < cores


def fit_trials(
    place: Place,
    queue: Any,
    count: int,
    at_once: int,
    rule: StopEarly | None,
    watch: Watch,
    ended_before: Sequence[Trial],
    run: Callable[[dict[str, Any]], None] = enter,
    reuse: bool = False,
) -> None:
    """Let Tune run the trials that the queue names; their folders hold what came of them.

    Args:
        count: how many the queue will name.
        at_once: trials at the same time.
        rule: which trials to stop early; None for none.
        ended_before: trials of an earlier run of this study, which the rule compares with.
        run: what is run of a trial; `reuse`: in actors that the next trial takes over (for trials that start none).

    Raises:
        KeyboardInterrupt: the second Ctrl-C.
    """
    os.environ.update({k: v for k, v in ENVIRONMENT.items() if k not in os.environ})
    from ray import tune
    from ray.tune.execution import class_cache

    # Tune would hand these to its actors by a runtime environment, which Ray writes to its logs, secret and all
    class_cache.ENV_VARS_TO_PROPAGATE -= {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}
    tuner = tune.Tuner(
        tune.with_resources(run, {"CPU": place.sizes.cpus}),
        param_space={"place": pickle.dumps(place)},
        tune_config=tune.TuneConfig(
            search_alg=queue, num_samples=count, max_concurrent_trials=at_once,
            scheduler=scheduler(place, rule, ended_before), reuse_actors=reuse,
            trial_name_creator=name_of, trial_dirname_creator=name_of,
        ),
        run_config=tune.RunConfig(
            name=f"tune-{time.time_ns()}", storage_path=str(place.folder / "tune"), verbose=0,
            callbacks=[watch.callback()], failure_config=tune.FailureConfig(max_failures=RETRIES),
        ),
    )  # fmt: skip
    # actors that the next trial takes over have nothing to wait for
    with reclaiming(), contextlib.nullcontext() if reuse else trial_hook():
        in_thread(tuner.fit)


@contextlib.contextmanager
def trial_hook() -> Iterator[None]:
    """While the body runs, actors that Tune starts import what `TRIAL` names before they are given a trial."""
    from ray.tune.execution import class_cache

    from pipelines.prestart import HOOK, TRIAL

    class_cache.ENV_VARS_TO_PROPAGATE.add(HOOK)
    os.environ[HOOK] = TRIAL
    try:
        yield
    finally:
        class_cache.ENV_VARS_TO_PROPAGATE.discard(HOOK)
        del os.environ[HOOK]


@contextlib.contextmanager
def reclaiming() -> Iterator[None]:
    """While the body runs, what dead trials held is given back, within a second."""
    from pipelines.group import reclaim

    def watch() -> None:
        while not over.wait(1.0):
            reclaim()

    over = threading.Event()
    thread = threading.Thread(target=watch, name="reclaim", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def name_of(trial: Any) -> str:
    """Our name of a Tune trial."""
    return trial.config["name"]


def scheduler(place: Place, rule: StopEarly | None, trials: Sequence[Trial]) -> Any:
    """First come, first served; or successive halving, told what earlier trials of the study reached.

    Trials that run are told again by themselves, as they enter their folder.
    """
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    if rule is None:
        return FIFOScheduler()
    # below 1: at its last step there is nothing left to stop
    asha = ASHAScheduler("progress", "miou", "max", 0.999, rule.grace, rule.reduction, stop_last_trials=False)  # type: ignore[arg-type]
    for trial in trials:
        known = SimpleNamespace(trial_id=trial.name)
        asha.on_trial_add(None, known)  # type: ignore[arg-type]
        for point in points_of(trial.recipe, place.trial(trial.name)).new():
            asha.on_trial_result(None, known, point)  # type: ignore[arg-type]
    return asha


class Watch:
    """Says on the screen what becomes of the trials, a line per event, and notes those that end early or fail."""

    def __init__(self, place: Place, look_up: Callable[[str], Trial], tracker: Any, left: int, at_once: int) -> None:
        """Args:
        look_up: the trial of a name.
        tracker: is told of each trial that begins, by its `add`.
        left: how many trials this run is to end.
        at_once: how many of them run at the same time.
        """
        self.place, self.look_up, self.tracker, self.left, self.at_once = place, look_up, tracker, left, at_once
        self.began: dict[str, float] = {}  # of those that run
        self.seconds: list[float] = []
        self.counts = dict.fromkeys(("done", "stopped", "failed"), 0)
        self.closing = threading.Event()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing to pickle: Tune writes its callbacks to disk before it starts, and nobody reads them."""
        return {}

    def started(self, name: str) -> None:
        again = " again, from its last checkpoint" if name in self.began else ""
        self.began[name] = time.time()
        timeline(self.place.trial(name), "started")
        self.tracker.add(self.look_up(name))
        self.say(name, f"starts{again}")

    def reported(self, name: str, result: Mapping[str, Any]) -> None:
        if "recorded" in result and not result.get("done"):
            timeline(self.place.trial(name), "told", recorded=result["recorded"], progress=result["progress"])
        if "miou" in result and result["progress"] < 1 and not result.get("done"):
            self.say(name, f"{result['progress']:.0%} of its steps, mIoU {result['miou'] * 100:.2f} %")

    def completed(self, name: str, result: Mapping[str, Any]) -> None:
        """The trial's function returned, or the rule stopped it."""
        trial, folder = self.look_up(name), self.place.trial(name)
        if ended(trial.recipe, folder) is None:
            if self.closing.is_set():
                self.began.pop(name, None)
                self.say(name, "waits, its checkpoint written")
                return
            end(folder, "stopped", progress=result["progress"], miou=result["miou"])
        self.count(name)

    def failed(self, name: str, why: str) -> None:
        """It died more often than it is retried."""
        end(self.place.trial(name), "failed", why=why)
        self.count(name)

    def count(self, name: str) -> None:
        """Take note of an end."""
        timeline(self.place.trial(name), "ended")
        how = ended(self.look_up(name).recipe, self.place.trial(name)) or {}
        took = time.time() - self.began.pop(name, time.time())
        self.counts[how["status"]] += 1
        self.seconds.append(took)
        self.left -= 1
        score = f", mIoU {how['miou'] * 100:.2f} %" if how.get("miou") is not None else ""
        part = f" early, after {how['progress']:.0%} of its steps" if how["status"] == "stopped" else ""
        why = f": {how['why']}" if "why" in how else ""
        self.say(name, f"{how['status']}{part}{score}, {clock(took)}{why}", True)

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

            def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
                lines = str(trial.get_error() or "it died").strip().splitlines()
                watch.failed(name_of(trial), lines[-1] if lines else "it died")

        watch = self
        return Events()


@contextlib.contextmanager
def stoppable_trials(place: Place, queue: Any, watch: Watch) -> Iterator[Callable[[], str | None]]:
    """While the body runs, SIGTERM and the first Ctrl-C let no trial start, and those that run end with a checkpoint.

    Yields what tells the signal's name, None where none came. The second Ctrl-C leaves at once.
    """
    asked: list[str] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and asked:
            raise KeyboardInterrupt
        asked.append(signal.Signals(number).name)
        queue.closed.set()
        watch.closing.set()
        print(f"\n{asked[0]}: trials end with a checkpoint; Ctrl-C (again) leaves at once", file=sys.stderr, flush=True)

    def remind() -> None:  # again and again: a trial that only starts clears the note of an earlier end
        while not over.wait(0.5):
            for name in list(watch.began) if asked else ():
                with contextlib.suppress(OSError):
                    write_text(place.trial(name) / STOP, asked[0])

    over = threading.Event()
    thread = threading.Thread(target=remind, name="stop-notes", daemon=True)
    thread.start()
    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: asked[0] if asked else None
    finally:
        over.set()
        thread.join()
        for number, handler in before.items():
            signal.signal(number, handler)
