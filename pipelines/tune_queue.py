"""What names the next trial, as Ray Tune asks for it.

A module of its own because it imports Ray, which may be imported only once `ray_cluster` has set its environment.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from pipelines.record import write_text
from pipelines.searching import Source


class Queue(Searcher):
    """A source as Tune's searcher; `close` lets no further trial start."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source, self.closed = source, threading.Event()

    def suggest(self, trial_id: str) -> Any:
        if self.closed.is_set() or not self.source.left():
            return Searcher.FINISHED
        name = self.source.next()
        return None if name is None else {"name": name}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Nothing to learn: the trial's folder holds it."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save, for the same reason; Tune asks for a file."""
        write_text(Path(checkpoint_path), "{}")

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing to pickle, for the same reason: Tune writes its searcher to disk before it starts."""
        return {}
