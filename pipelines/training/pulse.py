"""Ends a worker that makes no progress."""

from __future__ import annotations

import faulthandler
from pathlib import Path

from pipelines.recipes.recipe import Workers


class Pulse:
    """Ends this process when it makes no progress for `workers.hang_minutes`, the stacks of its threads in a file.

    Ray replaces an ended worker, and the others with it, and the stage continues from its checkpoint. The clock runs
    in C, outside of the interpreter's lock, so that a call that never returns is caught too.
    """

    def __init__(self, path: Path, workers: Workers) -> None:
        self.seconds, self.path = workers.hang_minutes * 60, path
        self.here = workers.count == 0  # in the user's own process, whose end must be explained on its screen

    def __enter__(self) -> Pulse:
        self.file = self.path.open("a")  # what an earlier attempt left there is looked at afterwards
        self.beat()
        return self

    def beat(self) -> None:
        """Progress: the clock starts again."""
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=2 if self.here else self.file)

    def __exit__(self, *error: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        self.file.close()
        if not self.path.stat().st_size:
            self.path.unlink()
