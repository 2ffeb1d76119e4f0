"""The stages on Ray Train's workers, and what their end means."""

from __future__ import annotations

import pickle
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.base.errors import InputError, RunFailed, Stopped, users_message
from pipelines.base.files import write_text
from pipelines.runs.folder import RunFolder
from pipelines.runs.stopping import in_thread, stoppable
from pipelines.training.job import Interrupted, Job

if TYPE_CHECKING:
    from pipelines.training.stage import Feed


def fit(jobs: Sequence[Job], folder: Path, feed: Feed | None = None) -> None:
    """Run the loop on Ray Train's workers, all stages on the same ones, so that their start is paid once.

    A worker that dies is replaced, and the stage continues from its last checkpoint.

    Args:
        folder: of the run.
        feed: gives the batches instead of Ray Data or a DataLoader, see `training.stage.train`.

    Raises:
        InputError: a worker found its input at fault.
        RunFailed: it failed for good, or the loss stopped being finite.
        Stopped: SIGTERM or Ctrl-C; a checkpoint was written first.
    """
    from pipelines.cluster.group import trainer

    def enter(config: dict[str, Any]) -> Interrupted | None:
        # imported in the worker: Ray's controller need not load the models too
        from pipelines.training.worker import train_stages

        return train_stages(pickle.loads(config["jobs"]), **({"feed": feed} if feed else {}))

    run = RunFolder(folder)
    run.fault.unlink(missing_ok=True)
    sizes, failures = jobs[0].sizes, jobs[0].recipe.workers.max_failures
    # Ray's own resume is not used, hence a name of its own: our checkpoints are the state.
    job = trainer(enter, {"jobs": pickle.dumps(jobs)}, sizes, f"fit-{time.time_ns()}", run.ray, failures)
    with stoppable(folder):
        try:
            ended: Interrupted | None = in_thread(job.fit).return_value  # type: ignore[attr-defined]
        except Exception as error:
            causes = [error, *getattr(error, "worker_failures", {}).values()]
            if fault := next(filter(None, map(users_message, causes)), None):
                raise InputError(fault) from None
            write_text(run.error, f"{type(error).__name__}: {error}\n")
            first = str(error).strip().splitlines()
            raise RunFailed(
                f"training failed: {first[-1] if first else type(error).__name__}. The whole error is in "
                f"{run.error}; the same command continues from the last checkpoint."
            ) from error
    if run.fault.exists():
        raise InputError(run.fault.read_text())
    if ended and ended.signal:
        code = signal.Signals[ended.signal].value + 128
        raise Stopped(f"{ended.signal}: {ended.text}; the same command continues from there", code)
    if ended:
        raise RunFailed(ended.failure)
