"""What names the next trial, as Ray Tune asks for it.

A module of its own because it imports Ray, which may be imported only once `ray_cluster` has set its environment.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from pipelines.base.files import write_text
from pipelines.studies.searching import Source


class Queue(Searcher):
    """A source as Tune's searcher; while `closed` is set, no further trial starts.

    A trial is told whether it is `followed`: whether the processes of another, which waits for its place among the
    `at_once` that run, are to start while it trains.
    """

    def __init__(self, source: Source, at_once: int, early: bool = False) -> None:
        super().__init__()
        self.source, self.at_once, self.early, self.closed = source, at_once, early, threading.Event()

    def suggest(self, trial_id: str) -> Any:
        if self.closed.is_set() or not self.source.left():
            return Searcher.FINISHED
        name = self.source.next()
        return None if name is None else {"name": name, "followed": self.early and self.source.left() >= self.at_once}

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
