"""The loop of one stage on one worker; it is the same on one laptop core and on many GPUs."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Generator, Iterator

import numpy as np

from pipelines.cluster.device import device_of
from pipelines.cluster.inside_ray import one_more
from pipelines.feed.batch import Batch
from pipelines.feed.batches import train_batches, under_way
from pipelines.feed.plan import SamplePlan
from pipelines.recipes.model import train_mode
from pipelines.runs.folder import RunFolder
from pipelines.runs.record import Record
from pipelines.runs.results import Outcome
from pipelines.runs.stopping import asked_to_stop
from pipelines.training.closing import score_best
from pipelines.training.copy import Copy
from pipelines.training.job import Interrupted, Job
from pipelines.training.learner import Learner, make_learner
from pipelines.training.meter import Meter
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
    plan, validations = learner.plan(), validation_steps(job)
    with (
        under_way(feed(plan, recipe.feed, job.sizes.feed_tasks, job.sizes.feed_cpus)) as batches,
        Record(job.place.record if rank == 0 else None) as record,
        beside(learner, record, pulse) as asked,
    ):
        record.add("note", plan.start, text=shown_to(copy, learner.origin + told_of_hangs(job)))
        if job.val and plan.start == 0 and learner.progress.before is None:
            score(learner, 0, record, pulse.beat)
        meter = Meter(learner)
        train_mode(learner.model, learner.frozen)
        for done, batch in enumerate(meter.waiting(batches), start=plan.start + 1):
            pulse.beat()
            losses, ending = train_step(learner, batch, done - 1, asked())
            meter.add(losses)
            if job.has_successor and done == plan.start + 1:
                one_more()
            scores_now = done in validations
            logs_now = scores_now or done % recipe.log_every == 0 or done == job.end
            # only on CPUs at every step: on a GPU, looking at it would wait for the step
            ends_now = (logs_now or device.type == "cpu") and bool(ending) and done < job.end
            if logs_now or ends_now:
                kept = meter.losses()
                if message := not_finite(plan, done, kept[:, 0]):
                    return Interrupted(failure=message)
            if logs_now:
                record.add("train", done, **meter.line(kept, done, learner.optimizer.param_groups[0]["lr"]))
            if scores_now:
                score(learner, done, record, pulse.beat)
                train_mode(learner.model, learner.frozen)
                meter.restart()
            if scores_now or ends_now or done == job.end or (logs_now and meter.due(recipe.checkpoint_minutes)):
                learner.progress = meter.carry(learner.progress, done)
                learner.keep()
            if ends_now:
                return stopped(record, signal.Signals(int(ending)).name, job.stage.name, done)
        if unscored := score_best(learner, record, pulse.beat):
            return unscored
        show_best(learner, record, pulse.beat)
    progress = learner.progress
    return Outcome(progress.step, progress.before, progress.after, progress.best, progress.best_step, meter.overall())


@contextlib.contextmanager
def beside(learner: Learner, record: Record, pulse: Pulse) -> Iterator[Callable[[], int]]:
    """While the body trains, rank 0 saves in a thread, and another looks for a request to stop, which this gives."""
    stop, copy = RunFolder(learner.job.folder.parent).stop, learner.copy
    with (
        asked_to_stop(None if learner.rank else stop, copy.fetch if copy else None) as asked,
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


def stopped(record: Record, name: str, stage: str, step: int) -> Interrupted:
    """Note the end by a signal; returns why the stage did not end."""
    text = f"stopped in stage {stage} at step {step}, its checkpoint written"
    record.add("note", step, text=f"{name}: {text}")
    return Interrupted(signal=name, text=text)
