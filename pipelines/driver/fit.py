"""The stages on Ray Train's workers, and what their end means."""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.base.errors import InputError, RunFailed, Stopped, users_message
from pipelines.base.files import write_text
from pipelines.runs.folder import CHECKPOINTS, RunFolder
from pipelines.runs.stopping import in_thread, stoppable
from pipelines.runs.where import address_of, is_bucket
from pipelines.training.job import Interrupted, Job

if TYPE_CHECKING:
    from pipelines.cluster.failures import Failure
    from pipelines.cluster.sizes import Sizes
    from pipelines.training.stage import Feed


def fit(jobs: Sequence[Job], folder: Path, feed: Feed | None = None, tell: Callable[[str], None] | None = None) -> None:
    """Run the loop on Ray Train's workers, all stages on the same ones, so that their start is paid once.

    A worker that dies is replaced, and the stage continues from its last checkpoint. Each such end is told on the
    screen, and so is a wait for room on the cluster.

    Args:
        folder: of the run.
        feed: gives the batches instead of Ray Data or a DataLoader, see `training.stage.train`.
        tell: takes these lines; None for the screen.

    Raises:
        InputError: a worker found its input at fault.
        RunFailed: it failed for good, or the loss stopped being finite, or there was no room for too long.
        Stopped: SIGTERM or Ctrl-C; a checkpoint was written first.
    """
    run = RunFolder(folder)
    run.fault.unlink(missing_ok=True)
    run.resize.unlink(missing_ok=True)
    attempts = Attempts(jobs, run, feed, tell or say)
    with stoppable(folder, attempts.idle):
        try:
            ended = attempts.until_done()
        except (RunFailed, Stopped):
            raise
        except Exception as error:
            raise explained(error, jobs, run, attempts) from error
    if run.fault.exists():
        raise InputError(run.fault.read_text())
    if ended and ended.signal:
        code = signal.Signals[ended.signal].value + 128
        raise Stopped("the same command continues from there", code)  # the record's line says what ended, and where
    if ended:
        raise RunFailed(ended.failure)


class Attempts:
    """Attempts at training: Ray makes another itself, unless its workers are to be elsewhere.

    Args:
        jobs: the stages.
        run: the run's files.
        feed: as `fit` is given it.
        tell: takes a line on a failure or a wait.
    """

    def __init__(self, jobs: Sequence[Job], run: RunFolder, feed: Feed | None, tell: Callable[[str], None]) -> None:
        from pipelines.cluster.failures import Notes, steps_in
        from pipelines.cluster.waiting import Waiting

        records = [job.place.record for job in jobs]
        self.jobs, self.run, self.feed, self.tell = jobs, run, feed, tell
        self.hung = {path: path.stat().st_size for job in jobs for path in job.place.hangs()}
        self.most = jobs[0].recipe.workers.max_failures
        self.waiting = Waiting(jobs[0].sizes, jobs[0].recipe.workers, tell, lambda: steps_in(records))
        self.notes = Notes(run.ray / f"failures-{time.time_ns()}.jsonl")
        self.avoided: dict[str, str] = {}
        self.kills: dict[str, tuple[int, int]] = {}

    def until_done(self) -> Interrupted | None:
        """What the workers answer at the end.

        Raises:
            Exception: what ended them for good.
        """
        from pipelines.cluster.failures import count_kills
        from pipelines.cluster.nodes import AVOIDED

        self.notes.path.parent.mkdir(parents=True, exist_ok=True)
        self.kills = count_kills() if self.jobs[0].sizes.count else {}
        AVOIDED.clear()
        while True:
            before = len(self.notes.failures)
            try:
                return in_thread(self.trainer().fit, self.look).return_value  # type: ignore[attr-defined]
            except (RunFailed, Stopped):
                raise
            except Exception:
                self.look()
                if not self.goes_on(len(self.notes.failures) > before):
                    raise

    def trainer(self) -> Any:
        """Ray's trainer, away from the nodes that do not see the run's data."""
        from pipelines.cluster.elastic import Choice
        from pipelines.cluster.failures import Told
        from pipelines.cluster.group import trainer

        # Ray's own resume is not used, hence a name of its own: our checkpoints are the state.
        name, records = f"fit-{time.time_ns()}", [job.place.record for job in self.jobs]
        told = Told(self.notes.path, records, self.kills)
        config = {"jobs": pickle.dumps(self.jobs), "avoided": self.avoided, "own_threads": own_threads()}
        left = self.most - sum(failure.counts for failure in self.notes.failures)
        sizes = self.jobs[0].sizes
        note = None if is_bucket(self.jobs[0].recipe.output) else self.run.resize
        return trainer(
            entry(self.feed), config, sizes, name, self.run.ray, max(0, left),
            told=told, avoided=self.avoided, workers=self.jobs[0].recipe.workers,
            choice=Choice(sizes, self.avoided, note) if sizes.counts else None,
        )  # fmt: skip

    def look(self) -> None:
        """Tell of failures, and of a wait.

        Raises:
            RunFailed: the wait was too long.
        """
        for failure in self.notes.new():
            again = "" if failure.final and not failure.node else f"; {self.again(failure)}"
            if failure.kind != "fault":
                self.tell(f"{failure.text}{again}")
        if self.jobs[0].sizes.count:
            self.waiting.look()

    def again(self, failure: Failure) -> str:
        """How training goes on after a failure."""
        where = last_checkpoint(self.jobs)
        if not failure.counts:
            return f"training {where} on other nodes"
        count = sum(earlier.counts for earlier in self.notes.failures)
        return f"training {where}, restart {count} of {self.most}" if count <= self.most else "it was the last attempt"

    def goes_on(self, failed: bool) -> bool:
        """Whether training goes on after Ray's attempts ended: without a node that can be avoided, or after a wait.

        Args:
            failed: whether workers failed; else Ray found no room for them.
        """
        from pipelines.cluster.nodes import AVOIDED, alive

        last = self.notes.failures[-1] if self.notes.failures else None
        if last and last.node and last.node not in self.avoided:
            self.avoided[last.node] = last.address
            AVOIDED.update(self.avoided)
            return not set(alive()) <= set(self.avoided)
        return not failed and self.waiting.wait is not None and not self.waiting.wait.is_over

    def idle(self) -> bool:
        """Whether no worker runs that could read a request to stop."""
        return self.waiting.waits


def entry(feed: Feed | None) -> Any:
    """What each worker runs."""

    def enter(config: dict[str, Any]) -> Interrupted | None:
        # imported in the worker: Ray's controller need not load the models too
        from pipelines.driver.fit import here
        from pipelines.training.worker import train_stages

        return train_stages(here(config), **({"feed": feed} if feed else {}))

    return enter


def here(config: dict[str, Any]) -> list[Job]:
    """The jobs as this worker's node takes them: with its own threads, and only where it sees their data.

    Raises:
        BlindNode: it does not.
    """
    import dataclasses

    from pipelines.cluster.group import own_share
    from pipelines.cluster.nodes import AVOIDED, check_sight

    jobs: list[Job] = pickle.loads(config["jobs"])
    AVOIDED.update(config["avoided"])
    if not jobs[0].sizes.count:
        return jobs
    run = RunFolder(jobs[0].folder.parent)
    left = [job for job in jobs if not job.place.outcome.exists()]
    files = [] if is_bucket(jobs[0].recipe.output) else [run.recipe]  # in a bucket workers make their own copy
    check_sight([uri for job in left for uri in (job.train, job.val)], files)
    if jobs[0].sizes.counts:
        own = now(jobs[0].sizes, bool(jobs[0].recipe.workers.feed_tasks))
        jobs = [dataclasses.replace(job, sizes=own) for job in jobs]
    if not config["own_threads"]:
        return jobs
    threads = own_share(jobs[0].sizes)
    return [dataclasses.replace(job, threads=threads) for job in jobs]


def now(sizes: Sizes, fixed: bool) -> Sizes:
    """The size of a run of a range as it is at this start: its workers, with the feeding tasks that find a place.

    Args:
        fixed: whether the recipe names the number of feeding tasks.
    """
    import ray.train

    from pipelines.cluster.nodes import AVOIDED
    from pipelines.cluster.sizes import fed, present

    sizes = sizes.of(ray.train.get_context().get_world_size())
    return sizes if fixed else fed(sizes, present(AVOIDED))


def own_threads() -> bool:
    """Whether workers take as many CPU threads as their nodes have: not where the user gives a number.

    Nor in a trial of a study, which shares its nodes with others. In a submitted job Ray itself sets the variable to 1.
    """
    import ray

    given = os.environ.get("OMP_NUM_THREADS")
    if not ray.is_initialized():
        return not given
    context = ray.get_runtime_context()
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and given == "1":
        given = context.runtime_env.get("env_vars", {}).get("OMP_NUM_THREADS")
    return context.get_actor_id() is None and not given


def explained(error: Exception, jobs: Sequence[Job], run: RunFolder, attempts: Attempts) -> Exception:
    """What ended the workers for good, said to the user; the whole of it is written next to the run."""
    causes = [error, *getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", None)]
    if fault := next(filter(None, map(users_message, causes)), None):
        return InputError(fault)
    if run.fault.exists():
        return InputError(run.fault.read_text())
    last = attempts.notes.failures[-1] if attempts.notes.failures else None
    write_text(run.error, f"{type(error).__name__}: {error}\n" + (f"\n{last.whole}\n" if last else ""))
    if last and last.node:
        return InputError(f"no node sees the run's data: {last.text}. Put `data` and `output` where all nodes see them")
    after = f"The whole error is in {run.error}; the same command {last_checkpoint(jobs)}."
    hung = hangs(jobs, attempts.hung)
    if hung:
        minutes = jobs[0].recipe.workers.hang_minutes
        return RunFailed(f"training failed: workers made no progress for {minutes:g} min (workers.hang_minutes), and "
                         f"were ended; where they were: {', '.join(map(str, hung))}. {after}")  # fmt: skip
    from pipelines.cluster.failures import judge

    ended = last or judge({0: error}, [], advanced=False)  # without Ray's workers nothing was noted
    if ended.kind in ("gpu", "memory"):
        from pipelines.driver.estimate import memory_cure

        job = jobs[0]
        cure = memory_cure(job.recipe, max(len(job.classes) for job in jobs), job.sizes, ended.kind == "gpu")
        return RunFailed(f"training failed: {ended.text}. {cure} {after}")
    if last:
        return RunFailed(f"training failed: {last.text}. {after}")
    lines = str(error).strip().splitlines()
    return RunFailed(f"training failed: {lines[-1] if lines else type(error).__name__}. {after}")


def hangs(jobs: Sequence[Job], before: Mapping[Path, int]) -> list[Path]:
    """Notes of workers that hung since the notes had these sizes; clocks of two machines may differ by any time."""
    return [path for job in jobs for path in job.place.hangs() if path.stat().st_size != before.get(path)]


def last_checkpoint(jobs: Sequence[Job]) -> str:
    """From where training goes on."""
    if is_bucket(jobs[0].recipe.output):
        return f"continues from what is in {address_of(jobs[0].recipe)}"
    if any(any(job.place.checkpoints.glob(CHECKPOINTS)) for job in jobs):
        return "continues from the last checkpoint"
    return "begins again: no checkpoint was written yet"


def say(text: str) -> None:
    """A line on the screen, next to those of the record."""
    print(f"{'workers':>18}  {text}", flush=True)
