"""A run of MLflow that a folder keeps notes of: found again, restored when deleted, made anew when it is gone."""

from __future__ import annotations

import json
import sys
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.base.files import write_json
from pipelines.runs.local_store import file_of
from pipelines.runs.mlflow_client import connect, look_at, set_tags
from pipelines.runs.mlflow_faults import check_address, explain
from pipelines.runs.mlflow_runs import find_experiment, find_run

KEPT = ("began", "end", "about")  # of the notes, whatever becomes of the run in MLflow


class Tracked(ABC):
    """The uppermost run of a chain or of a study. Nothing that MLflow does, or fails to do, stops either.

    Attributes:
        top: the key under which the notes have the id of that run.
        state: what is kept in the folder: `uri`, `key`, the ids of runs, when it `began` (ms) and how it ended (`end`).
        ready: whether the run was found or created since the server last failed.
    """

    top: str

    def __init__(self, notes: Path, uri: str) -> None:
        """Read the notes; MLflow is not asked before `connect`.

        Args:
            notes: the file that keeps them.
            uri: the tracking server.

        Raises:
            SetupError: MLflow can never be at the address.
        """
        check_address(uri)
        self.uri, self.path = uri, notes
        self.known: dict[str, Any] = json.loads(notes.read_text()) if notes.exists() else {}
        same = self.known.get("uri") == uri
        self.state = self.fresh() | {k: v for k, v in self.known.items() if same or k in KEPT}
        self.ready, self.told = False, ""  # told: the last warning
        self.client: Any = None
        self.experiment: str | None = None

    def fresh(self) -> dict[str, Any]:
        """The notes on a run that MLflow knows nothing of."""
        return {"uri": self.uri, "key": uuid.uuid4().hex}

    @property
    def ours(self) -> bool:
        """Whether the notes are of this address; those of another stay until this one has the run."""
        return self.known.get("uri") in (None, self.uri)

    @property
    def run_id(self) -> str:
        """Id of the run, once `connect` found or created it."""
        return self.state[self.top]

    def save(self) -> None:
        """Keep the notes in the folder."""
        write_json(self.path, self.state)
        self.known = dict(self.state)

    def connect(self) -> None:
        """Find the run in MLflow, or create it; nothing where that was done already.

        Raises:
            Exception: what MLflow or the network raise, see `explain`.
        """
        if self.ready:
            return
        self.client = connect(self.uri, self.say)
        self.recognise()
        self.find()
        if self.top not in self.state:
            self.experiment = find_experiment(self.client, self.experiment_name(), self.uri, self.say)
            if self.ours:
                self.save()  # with its key, by which a run is found whose id never arrives here
            self.create_top()
            self.save()
        if self.goes_on():
            self.mark_running()
        self.ready = True

    def recognise(self) -> None:
        """Take over the notes of another address if this one has the run: the store was moved, or has a new name."""
        run = self.known.get(self.top)
        if self.known.get("uri") == self.uri or self.top in self.state or not run or not find_run(self.client, run):
            return
        kept = {k: v for k, v in self.state.items() if k in KEPT}
        self.state = self.fresh() | {k: v for k, v in self.known.items() if k not in KEPT} | kept | {"uri": self.uri}
        self.save()

    def find(self) -> None:
        """Look the run up, restore it when it is deleted, and forget one that MLflow no longer has."""
        if self.top not in self.state:
            return
        if (found := find_run(self.client, self.run_id, self.say)) is None:
            self.say("it no longer has this run: a new one is made, from the record")
            self.state = self.fresh() | {k: v for k, v in self.state.items() if k in KEPT}
            return
        self.experiment = found.info.experiment_id
        self.look_below(found)

    def look_below(self, run: Any) -> None:
        """See to the runs below the uppermost, which is there; nothing where there are none."""
        return

    @abstractmethod
    def experiment_name(self) -> str:
        """Of the experiment that the run belongs to."""

    @abstractmethod
    def create_top(self) -> None:
        """Create the run, and note its id."""

    @abstractmethod
    def goes_on(self) -> bool:
        """Whether the run is to be shown as running."""

    def open_runs(self) -> Sequence[str]:
        """Ids of the runs that have not ended."""
        return [self.run_id]

    def mark_running(self) -> None:
        """Mark what has not ended as running, without the error of the last time."""
        for run in dict.fromkeys(self.open_runs()):
            set_tags(self.client, run, {"error": None})
            self.client.update_run(run, "RUNNING")

    def say(self, text: str) -> None:
        """Tell what MLflow did not do by itself."""
        print(f"MLflow at {self.uri}: {text}", file=sys.stderr, flush=True)

    def warn(self, error: Exception, after: str = "") -> None:
        """A tracking server that fails costs a line on the screen, never the training; the same line once.

        Args:
            after: what follows from it, on a line of its own.
        """
        self.ready, text = False, explain(self.uri, error)
        if text != self.told:
            print("\n".join(filter(None, [f"warning: {text}", after])), file=sys.stderr, flush=True)
        self.told = text

    def ui_command(self) -> str:
        """What opens the run's page: see `look_at`."""
        return look_at(self.uri, self.experiment, self.state.get(self.top))


def last_address(notes: Path) -> str | None:
    """Where a run or a study logged to; None for its default address, as of a store that was moved together with it.

    Args:
        notes: its `tracking` file.
    """
    uri: str | None = json.loads(notes.read_text()).get("uri") if notes.exists() else None
    store = file_of(uri or "")
    return uri if store is None or store.exists() else None
