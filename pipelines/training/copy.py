"""What a worker's machine has of a run in a bucket: one copy for all workers of the machine, gone with them."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from pipelines.runs.copies import copy_folder, made_copy
from pipelines.runs.folder import HANGS
from pipelines.runs.mirror import Mirror, StoreFailed
from pipelines.runs.store import follows
from pipelines.runs.where import address_of, is_bucket
from pipelines.training.job import Job


@dataclass(frozen=True)
class Copy:
    """The copy of this machine; without a mirror it is the run's own folder, which all machines see.

    `leads` is whether this worker brings files for the others of its machine.
    """

    folder: Path
    mirror: Mirror | None = None
    leads: bool = False

    def bring(self, wanted: Callable[[str], bool]) -> None:
        """Have files here as the bucket has them; all workers call it, and go on when each machine has them.

        Raises:
            StoreFailed: the bucket does not give them.
        """
        if self.mirror is None:
            return
        if self.leads:
            self.mirror.pull(wanted)
        if dist.is_initialized():
            dist.barrier()

    def fetch(self, path: Path) -> None:
        """Have a small file here, if there is a new one; only for this worker, and not while the bucket is silent."""
        if self.mirror:
            with contextlib.suppress(StoreFailed):
                self.mirror.look(self.name(path))

    def send(self, path: Path) -> None:
        """Have the bucket hold a small file that any worker wrote, as far as it takes it."""
        if self.mirror:
            with contextlib.suppress(StoreFailed):
                self.mirror.send(self.name(path))

    def send_hangs(self) -> None:
        """Have the bucket hold where workers of this machine hung."""
        for path in self.folder.glob(f"*/{HANGS}") if self.leads else ():
            if path.stat().st_size:
                self.send(path)

    def shown(self, text: str) -> str:
        """A text with the run's address instead of the copy's folder."""
        return text.replace(str(self.folder), self.mirror.address) if self.mirror else text

    def name(self, path: Path) -> str:
        """A file's path from the run's folder on."""
        return path.relative_to(self.folder).as_posix()

    def bring_file(self, path: Path) -> None:
        """As `bring`, one file."""
        self.bring(lambda name: name == self.name(path))

    def begin(self, job: Job) -> None:
        """Have what a stage begins with, or goes on from."""
        if self.mirror is None:
            return
        files = [self.name(path) for path in (job.place.best, job.initial) if path]
        folder = self.name(job.place.checkpoints)
        self.bring(lambda name: name in files or Path(name).parent.as_posix() == folder)

    def push(self) -> None:
        """Have the bucket hold all that this worker wrote.

        Raises:
            StoreFailed: it does not take it.
        """
        if self.mirror:
            self.mirror.push()


@contextlib.contextmanager
def copied(jobs: Sequence[Job]) -> Iterator[tuple[list[Job], Copy]]:
    """The jobs with the folder that they have on this machine, which is theirs until the body ends.

    Raises:
        StoreFailed: the bucket does not answer.
    """
    import ray.train
    from ray.train.collective import broadcast_from_rank_zero

    recipe, before = jobs[0].recipe, jobs[0].folder.parent
    if not is_bucket(recipe.output):
        yield list(jobs), Copy(before)
        return
    context, uri = ray.train.get_context(), address_of(recipe)
    several = context.get_world_size() > 1
    token = secrets.token_hex(6)
    token = broadcast_from_rank_zero(token) if several else token
    leads = context.get_local_rank() == 0
    with contextlib.ExitStack() as stack:
        if leads:
            stack.enter_context(made_copy(uri, f"worker-{token}"))
        if several:
            dist.barrier()
        folder = copy_folder(uri, f"worker-{token}")
        copy = Copy(folder, Mirror(folder, uri), leads)
        copy.send_hangs()  # of workers that were killed here
        copy.bring(lambda name: follows(name) and is_needed(name))
        try:
            yield [moved(job, folder) for job in jobs], copy
        except BaseException:
            copy.send_hangs()
            raise
        if several:
            dist.barrier()  # nobody takes the folder away from others


def is_needed(name: str) -> bool:
    """Whether a worker begins with a file: what is of the run, and the notes of its stages, but no pictures."""
    return len(Path(name).parts) <= 2


def moved(job: Job, folder: Path) -> Job:
    """A job whose files are in another folder."""
    before = job.folder.parent
    initial = folder / job.initial.relative_to(before) if job.initial else None
    return dataclasses.replace(job, folder=folder / job.folder.name, initial=initial)
