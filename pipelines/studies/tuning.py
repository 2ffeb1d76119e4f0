"""Ray Tune runs the trials: as many at once as the cluster carries, retried when they die, stopped by a rule."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType, SimpleNamespace
from typing import Any

from pipelines.base.errors import InputError
from pipelines.base.files import write_text
from pipelines.base.polling import Polling
from pipelines.cluster.inside_ray import hide_secrets, reclaim, trial_hook
from pipelines.cluster.sizes import Sizes, size_workers
from pipelines.recipes.recipe import Workers
from pipelines.runs.stopping import in_thread
from pipelines.studies.study import StopEarly, Trial
from pipelines.studies.trial import TrialContext, enter, points_of
from pipelines.studies.watch import Watch, name_of

RETRIES = 2
# Defaults that a user's own environment overrules; Tune reads them when a run starts.
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the record is ours
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that ends before its first validation reports nothing
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # what Tune would restore is in the trials' folders
    "TUNE_FORCE_TRIAL_CLEANUP_S": "5",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def slots_of(workers: Workers, cores: int, gpus: int) -> int:
    """How many trials the machines have room for, by GPUs, or by cores where a trial trains on CPUs."""
    gpu = workers.gpus if workers.gpus is not None else int(gpus > 0)
    count = workers.number if workers.number is not None else (gpus if gpu else 1)
    return max(1, (gpus if gpu else cores) // max(1, count))


def room(workers: Workers, *, cores: int, gpus: int, logical: float, wanted: int | None = None) -> tuple[Sizes, int]:
    """The size of a trial, and how many run at once.

    Args:
        cores: of the cluster, as are `gpus`; `logical`: CPUs that Ray hands out.
        wanted: trials at once; by default as many as fit.

    Raises:
        InputError: not even one fits, or fewer than wanted, with the arithmetic.
    """
    slots = wanted or slots_of(workers, cores, gpus)
    # one trial has all of it, or its equal part: feeding tasks would else take what the next trial needs
    part = {"cores": max(1, cores // slots), "gpus": gpus // slots, "logical": logical / slots}
    try:
        sizes = size_workers(workers, **part)  # type: ignore[arg-type]
    except InputError as error:
        raise InputError(
            f"{slots} trial(s) at once on {cores} core(s) and {gpus} GPU(s) leave {part['cores']} core(s) and "
            f"{part['gpus']} GPU(s) for each: {error}"
        ) from None
    return sizes, slots


def spare(sizes: Sizes, at_once: int, cores: int) -> bool:
    """Whether processes can start next to so many trials of a size: not where these train on every core there is."""
    return bool(sizes.gpus) or at_once * max(1, sizes.count) < cores


def fit_trials(
    place: TrialContext,
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

    hide_secrets()
    tuner = tune.Tuner(
        tune.with_resources(run, {"CPU": place.sizes.cpus}),
        param_space={"place": pickle.dumps(place)},
        tune_config=tune.TuneConfig(
            search_alg=queue, num_samples=count, max_concurrent_trials=at_once,
            scheduler=scheduler(place, rule, ended_before), reuse_actors=reuse,
            trial_name_creator=name_of, trial_dirname_creator=name_of,
        ),
        run_config=tune.RunConfig(
            name=f"tune-{time.time_ns()}", storage_path=str(place.study.tune), verbose=0,
            callbacks=[watch.callback()], failure_config=tune.FailureConfig(max_failures=RETRIES),
        ),
    )  # fmt: skip
    # actors that the next trial takes over have nothing to wait for
    with reclaiming(), contextlib.nullcontext() if reuse else trial_hook():
        in_thread(tuner.fit)


@contextlib.contextmanager
def reclaiming() -> Iterator[None]:
    """While the body runs, what dead trials held is given back, within a second."""
    with Polling(reclaim, lambda: 1.0, "reclaim"):
        yield


def scheduler(place: TrialContext, rule: StopEarly | None, trials: Sequence[Trial]) -> Any:
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


@contextlib.contextmanager
def stoppable_trials(place: TrialContext, queue: Any, watch: Watch) -> Iterator[Callable[[], str | None]]:
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
        for name in list(watch.began) if asked else ():
            with contextlib.suppress(OSError):
                write_text(place.files(name).stop, asked[0])

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with Polling(remind, lambda: 0.5, "stop-notes"):
            yield lambda: asked[0] if asked else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
