"""Where a run is: a folder of this machine, or a bucket with a copy on each machine that works on it.

A copy is made anew by each process that needs one, from what the bucket holds, and is removed as it ends: the bucket is
the truth, and no machine needs what another one wrote to its disk.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.base.addresses import hide_secret
from pipelines.base.errors import InputError, RunFailed, SetupError, Stopped
from pipelines.base.polling import Polling
from pipelines.recipes.recipe import Recipe
from pipelines.runs.copies import made_copy
from pipelines.runs.folder import RunFolder, StageFolder, commit_of
from pipelines.runs.lease import Lease
from pipelines.runs.mirror import Mirror, StoreFailed, small
from pipelines.runs.run import locked
from pipelines.runs.where import address_of, is_bucket, local_output

SYNC_S = 1.5  # between two looks of the driver at what workers wrote
PUSH_S = 6.0  # between two looks at what it wrote itself


@dataclass
class Place:
    """Where a run's files are for this process.

    `output` has what is of this machine: the local MLflow store, weights that were fetched, the sample. `folder` is the
    run's, or a copy of it; `mirror` leads to the bucket, where there is one. `told` is whether it was said that the
    bucket is silent.
    """

    output: Path
    folder: Path
    mirror: Mirror | None = None
    told: bool = False
    pushed: float = 0.0  # when, by the monotonic clock

    def push(self) -> None:
        """Have the bucket hold what this process wrote.

        Raises:
            RunFailed: it does not take it.
        """
        if self.mirror:
            try:
                self.mirror.push()
            except StoreFailed as error:
                raise RunFailed(f"{error}. When the bucket takes it, the same command goes on") from None

    def bring(self, path: Path) -> None:
        """Have a file of the run here, such as weights, which nobody copies unasked.

        Raises:
            StoreFailed: the bucket does not give it.
        """
        if self.mirror:
            name = path.relative_to(self.folder).as_posix()
            self.mirror.pull(lambda other: other == name)

    @contextlib.contextmanager
    def caught_up(self) -> Iterator[None]:
        """As the body ends, in whatever way, all that the workers had sent is here."""
        try:
            yield
        finally:
            if self.mirror:
                with contextlib.suppress(StoreFailed):
                    self.mirror.pull(follows)

    @contextlib.contextmanager
    def followed(self) -> Iterator[None]:
        """While the body runs, what other machines write arrives here, and what is written here leaves."""
        if self.mirror is None:
            yield
            return
        with Polling(self.sync, lambda: SYNC_S, "bucket", last=True):
            yield

    def sync(self) -> None:
        """One look at both sides; a bucket that is silent costs a line on the screen."""
        assert self.mirror is not None
        try:
            if RunFolder(self.folder).stop.exists() or time.monotonic() - self.pushed > PUSH_S:
                self.mirror.push(())
                self.pushed = time.monotonic()
            self.mirror.pull(follows, ())
        except StoreFailed as error:
            if not self.told:
                print(
                    f"warning: {error}\n  training goes on; what it writes is kept, and sent when the bucket answers",
                    file=sys.stderr,
                    flush=True,
                )
            self.told = True
            return
        if self.told:
            print(f"{hide_secret(self.mirror.uri)} answers again", file=sys.stderr, flush=True)
        self.told = False


@contextlib.contextmanager
def held(recipe: Recipe) -> Iterator[Place]:
    """The recipe's run, held by this process while the body runs.

    Raises:
        DataError, InputError: the bucket does not answer, or cannot be written.
        SetupError: the folder cannot be written, or another process trains into the run.
        RunFailed: the body is done, but the bucket does not take the last of it.
    """
    output = local_output(recipe.output)
    if not is_bucket(recipe.output):
        folder = output / "runs" / str(recipe.name)
        with locked(folder):
            yield Place(output, folder)
        return
    with in_bucket(address_of(recipe)) as place:
        yield place


@contextlib.contextmanager
def in_bucket(uri: str) -> Iterator[Place]:
    """A run in a bucket, as `held`."""
    output = local_output(uri)
    with made_copy(uri, f"driver-{secrets.token_hex(6)}") as folder:
        mirror = Mirror(folder, uri)
        place, run = Place(output, folder, mirror), RunFolder(folder)
        lease = Lease(mirror.system, f"{mirror.root}/{run.lease.name}", hide_secret(uri))
        with as_input(lease.held()), shown_as(folder, mirror.address):
            begin(place)
            try:
                yield place
            finally:
                end(place, sys.exc_info()[1] is not None)


def begin(place: Place) -> None:
    """Bring what the bucket has of the run, but weights; of these the one checkpoint that tells how the run computes.

    Raises:
        InputError: the bucket does not give it.
    """
    assert place.mirror is not None
    try:
        place.mirror.pull(follows)
        if found := [name for name in place.mirror.listed if is_checkpoint(name)]:
            newest = max(found, key=lambda name: place.mirror.listed[name].time)  # type: ignore[union-attr]
            place.mirror.pull(lambda name: name == newest)
    except StoreFailed as error:
        raise InputError(str(error)) from None


def end(place: Place, failed: bool) -> None:
    """Bring the last of a run to its bucket.

    Args:
        failed: whether it ends by an error, which is told then instead of the bucket's.
    """
    try:
        place.push()
    except RunFailed as error:
        kept = place.folder.parents[2] / f"kept-{place.folder.name}-{secrets.token_hex(3)}"
        shutil.copytree(place.folder, kept)
        text = f"{error}. What it lacks is in {kept}"
        if not failed:
            raise RunFailed(text) from None
        print(f"warning: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def as_input(lease: contextlib.AbstractContextManager[None]) -> Iterator[None]:
    """Hold a lease; a bucket that cannot be read or written at all is told as bad input."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lease)
        except StoreFailed as error:
            raise InputError(f"output: {error}") from None
        yield


@contextlib.contextmanager
def shown_as(folder: Path, uri: str) -> Iterator[None]:
    """Errors that leave the body name the bucket instead of the copy, which is removed."""
    try:
        yield
    except (InputError, RunFailed, SetupError) as error:
        raise type(error)(str(error).replace(str(folder), uri)) from error
    except Stopped as error:
        raise Stopped(str(error).replace(str(folder), uri), error.code) from error


def is_checkpoint(name: str) -> bool:
    """Whether a run's file is a checkpoint from which a stage goes on."""
    return commit_of(name) == commit_of(str(StageFolder(Path()).checkpoint(0)))


def follows(name: str) -> bool:
    """Whether a driver wants a file of its run unasked: all but weights, packed models, and its own lease."""
    path = Path(name)
    return small(name) and "model" not in path.parts[1:2] and path != RunFolder(Path()).lease
