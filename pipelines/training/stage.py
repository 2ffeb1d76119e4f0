"""The loop of one stage on one worker; it is the same on one laptop core and on many GPUs."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Generator, Iterator
from typing import NoReturn

import numpy as np

from pipelines.cluster.device import device_of
from pipelines.cluster.inside_ray import one_more
from pipelines.feed.ahead import lane_to, under_way
from pipelines.feed.batch import Batch
from pipelines.feed.batches import train_batches
from pipelines.feed.plan import SamplePlan
from pipelines.recipes.model import train_mode
from pipelines.runs.folder import RunFolder
from pipelines.runs.record import Record
from pipelines.runs.results import Outcome
from pipelines.runs.stopping import OTHERS, asked_to_stop
from pipelines.training.closing import score_best
from pipelines.training.copy import Copy
from pipelines.training.job import Interrupted, Job
from pipelines.training.learner import Learner, make_learner
from pipelines.training.meter import Meter
from pipelines.training.notice import Notice
from pipelines.training.pulse import Pulse
from pipelines.training.score import score, validation_steps
from pipelines.training.showing import show_best
from pipelines.training.step import rehearse, train_step

Feed = Callable[[SamplePlan, str, int, float], Generator[Batch]]


def train(job: Job, pulse: Pulse, feed: Feed = train_batches, copy: Copy | None = None) -> Outcome | Interrupted:
    """One stage on one worker: read, forward, backward, step, report.

    Args:
        pulse: is told of progress.
        feed: gives the worker's batches of a plan, see `train_batches`.
        copy: what this machine has of a run in a bucket; None where all see the run's folder.

    Returns:
        The stage's outcome, equal on all workers except for what only rank 0 measures; or why there is none: the loss
        stopped being finite, or a signal came.
    """
    import ray.train

    context, recipe = ray.train.get_context(), job.recipe
    rank, world, device = context.get_world_rank(), context.get_world_size(), device_of(job.sizes.gpus)
    learner = make_learner(job, rank, world, device, copy)
    rehearse(learner)
    pulse.beat()  # setting up is progress too: on a busy machine it alone takes half a minute
    plan, validations, lane = learner.plan(), validation_steps(job), lane_to(device, learner.channels_last)
    with (
        under_way(feed(plan, recipe.feed, job.sizes.feed_tasks, job.sizes.feed_cpus), lane) as batches,
        Record(job.place.record if rank == 0 else None) as record,
        beside(learner, record, pulse) as asked,
    ):
        begin(learner, record, pulse)
        meter, notice = Meter(learner), Notice(asked, recipe.checkpoint_minutes)
        train_mode(learner.model, learner.frozen)
        for done, batch in enumerate(meter.waiting(batches), start=plan.start + 1):
            pulse.beat()
            losses, ending = train_step(learner, batch, done - 1, notice.word() if rank == 0 else 0)
            meter.add(losses)
            if job.has_successor and done == plan.start + 1:
                one_more()
            scores_now = done in validations
            logs_now = scores_now or done % recipe.log_every == 0 or done == job.end
            # only on CPUs at every step: on a GPU, looking at it would wait for the step
            word = int(ending) * (done < job.end) if logs_now or device.type == "cpu" else 0
            if logs_now or word:
                kept = meter.losses()
                if message := not_finite(plan, done, kept[:, 0]):
                    return Interrupted(failure=message)
            if logs_now:
                record.add("train", done, **meter.line(kept, done))
            if scores_now:
                score(learner, done, record, pulse.beat)
                train_mode(learner.model, learner.frozen)
                meter.restart()
            if scores_now or word or done == job.end or (logs_now and meter.due(notice.minutes)):
                learner.progress = meter.carry(learner.progress, done)
                learner.keep()
            if word and not notice.answer(record, word, done):
                return stopped(learner, record, word, done)
        if unscored := score_best(learner, record, pulse.beat):
            return unscored
        show_best(learner, record, pulse.beat)
    progress = learner.progress
    return Outcome(progress.step, progress.before, progress.after, progress.best, progress.best_step, meter.overall())


def begin(learner: Learner, record: Record, pulse: Pulse) -> None:
    """Note how training begins, or goes on, and score what it begins with."""
    start, text = learner.progress.step, shown_to(learner.copy, learner.origin + told_of_hangs(learner.job))
    record.add("note", start, text=text, workers=learner.world, computes=learner.computes)
    if learner.job.val and start == 0 and learner.progress.before is None:
        score(learner, 0, record, pulse.beat)


@contextlib.contextmanager
def beside(learner: Learner, record: Record, pulse: Pulse) -> Iterator[Callable[[], int]]:
    """While the body trains, rank 0 saves in a thread, and another looks for a request to stop, which this gives."""
    run, copy = RunFolder(learner.job.folder.parent), learner.copy
    with (
        asked_to_stop(None if learner.rank else run.stop, run.resize, copy.fetch if copy else None) as asked,
        contextlib.nullcontext() if learner.rank else learner.saving.running(pulse.beat, record.add),
    ):
        yield asked


def shown_to(copy: Copy | None, text: str) -> str:
    """A text for people, with the run's address instead of the folder of its copy."""
    return copy.shown(text) if copy else text


def told_of_hangs(job: Job) -> str:
    """What the record says of workers that hung in an earlier attempt; empty where none did."""
    hung = ", ".join(map(str, job.place.hangs()))
    return f". Workers hung and were replaced; where they were: {hung}" if hung else ""


def not_finite(plan: SamplePlan, done: int, losses: np.ndarray) -> str:
    """The message for a loss that is nan or inf; steps are counted from 1 in it, as in the record.

    Args:
        done: steps that are done.
        losses: of the last steps (S,).
    """
    bad = np.flatnonzero(~np.isfinite(losses))
    if not len(bad):
        return ""
    step = done - len(losses) + int(bad[0])
    return (
        f"the loss became {losses[bad[0]]} at step {step + 1}, on the samples {', '.join(plan.ids(step))}. Nothing was "
        "saved after it. Look at these samples (audit), or train with a lower learning rate or more warmup, which is "
        "another run (name=OTHER); the same command goes on from the last checkpoint."
    )


def stopped(learner: Learner, record: Record, asked: int, step: int) -> Interrupted:
    """Note the end by a signal; returns why the stage did not end. Where others are to go on, Ray ends this process."""
    if asked == OTHERS:
        make_way(learner, record, step)
    name, stage = signal.Signals(asked).name, learner.job.stage.name
    text = f"stopped in stage {stage} at step {step}, its checkpoint written"
    record.add("note", step, text=f"{name}: {text}")
    return Interrupted(signal=name, text=text)


def make_way(learner: Learner, record: Record, step: int) -> NoReturn:
    """Answer who asked for a checkpoint, so that more workers go on, and wait for Ray to end this process."""
    learner.saving.flush()
    record.add("note", step, text=f"nodes have joined: more workers go on from step {step}, its checkpoint written")
    if learner.rank == 0:
        RunFolder(learner.job.folder.parent).resize.unlink(missing_ok=True)
    while True:  # a worker that returns would end the training
        time.sleep(1.0)
