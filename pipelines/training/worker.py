"""What one Ray worker does: the stages of a chain, one after the other, each unless its outcome is there."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

from pipelines.base.door import check_names
from pipelines.base.errors import SetupError, users_message
from pipelines.base.files import write_text
from pipelines.cluster.device import disorder_refused
from pipelines.feed.batches import train_batches
from pipelines.runs.folder import RunFolder
from pipelines.runs.record import Record
from pipelines.training.copy import Copy, copied
from pipelines.training.job import Interrupted, Job
from pipelines.training.machines import note_machines
from pipelines.training.pulse import Pulse
from pipelines.training.stage import Feed, train


def train_stages(jobs: Sequence[Job], feed: Feed = train_batches) -> Interrupted | None:
    """All stages of a chain on one of Ray's workers, each unless its outcome is there already.

    Ray restarts the workers after any exception. A fault of the input would only come again: the next attempt finds
    the note of the last and ends.

    Args:
        feed: gives the batches, see `train`.

    Returns:
        None when all stages have their outcome; else why not.
    """
    from pipelines.cluster.group import process_group

    check_names()
    with process_group(), copied(jobs) as (here, copy):
        run = RunFolder(copy.folder)
        if not run.recipe.exists():
            raise SetupError(
                f"a worker does not see {run.path}: put `output` on a file system that all nodes share, or in a bucket"
            )
        told = note_machines(run, jobs[0].sizes.gpus)
        for job in here:
            if run.fault.exists():
                return Interrupted(failure=run.fault.read_text())
            if job.place.outcome.exists():
                continue
            if told:
                with Record(job.place.record) as record:
                    record.add("note", 0, text=told)
            copy.begin(job)
            if interrupted := train_stage(job, run.fault, feed, copy):
                return interrupted
    return None


def train_stage(job: Job, note: Path, feed: Feed, copy: Copy) -> Interrupted | None:
    """One stage of a chain on one worker, see `train_stages`.

    Args:
        note: where a fault of the input is written.
        feed: gives the batches.
        copy: what this machine has of a run in a bucket.
    """
    import ray.train

    rank = ray.train.get_context().get_world_rank()
    try:
        with Pulse(job.place.hang(rank), job.recipe.workers) as pulse, disorder_refused():
            ended = train(job, pulse, feed, copy if copy.mirror else None)
    except Exception as error:
        if message := users_message(error):
            with contextlib.suppress(OSError):  # a full disk, perhaps
                write_text(note, copy.shown(f"stage {job.stage.name}: {message}"))
                copy.send(note)
        raise
    if isinstance(ended, Interrupted):
        return Interrupted(failure=f"stage {job.stage.name}: {ended.failure}") if ended.failure else ended
    if rank == 0:
        ended.write(job.place.outcome)
        copy.push()
    if dist.is_initialized():
        dist.barrier()  # nobody begins the next stage before its first weights are written
    return None
