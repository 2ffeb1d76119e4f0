"""The runs of a chain in MLflow: a parent, and a child per stage, fed from the local record.

The run of a study's trial is a child of the study's; a trial of one stage has no run below it.

The record (record.jsonl) is the truth. A `Sender` in the driver reads it while the workers write and sends it on; how
far it sent is kept in the run's folder. So a resumed run continues the same MLflow runs without a doubled step, a
server that was away is caught up with, and `python -m pipelines.replay` sends what it did not come back for.
"""

from __future__ import annotations

import contextlib
import json
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.base.errors import Stopped
from pipelines.base.files import write_json
from pipelines.base.polling import Polling
from pipelines.recipes.recipe import Recipe, flatten, to_page, to_yaml
from pipelines.runs.folder import RunFolder, StageFolder
from pipelines.runs.mlflow_client import (
    KEY,
    PARENT,
    Point,
    create_run,
    default_uri,
    find_experiment,
    first_line,
    open_client,
    send_metrics,
    send_params,
)
from pipelines.runs.mlflow_lines import send_lines
from pipelines.runs.record import read_record
from pipelines.runs.results import About, Result, final_weights

POLL_S = 0.5
RETRY_S = 15.0  # while the server is away


class Tracker:
    """The MLflow runs of one chain. Creating them fails early; what comes later never stops a training."""

    def __init__(
        self,
        recipe: Recipe,
        output: Path,
        folder: Path,
        uri: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Find the runs of `folder` (a resume, a replay) or create the parent.

        Args:
            recipe: the chain's.
            output: where the default store and the artifacts of a local one are.
            folder: the run's.
            uri: the tracking server, if not the recipe's, the environment's or the default.
            tags: of a study's trial: the study's run as its parent, variant and seed.

        Raises:
            SetupError: the tracking server does not answer.
        """
        self.uri = uri or recipe.tracking or default_uri(output)
        self.recipe, self.output, self.folder = recipe, output, RunFolder(folder)
        self.path = self.folder.tracking
        known = json.loads(self.path.read_text()) if self.path.exists() else {}
        fresh: dict[str, Any] = {"uri": self.uri, "stages": {}, "sent": {}, "ended": []}
        fresh["flat"] = bool(tags) and len(recipe.stages) == 1
        self.state: dict[str, Any] = fresh | known if known.get("uri") == self.uri else fresh
        self.flat = self.state["flat"]  # one stage: its metrics go to the trial's own run
        with open_client(self.uri) as self.client:
            if "parent" not in self.state:
                self.experiment = find_experiment(self.client, recipe.experiment, self.uri, output)
                self.state.setdefault("key", uuid.uuid4().hex)
                if known.get("uri") in (None, self.uri):  # else what is noted of another server stays until this has it
                    self.save()
                named = {KEY: self.state["key"]} | dict(tags or {})
                self.state["parent"] = self.create(str(recipe.name), named, flatten(to_page(recipe)))
                self.client.log_text(self.state["parent"], to_yaml(recipe), self.folder.recipe.name)
                self.save()
            else:
                self.experiment = self.client.get_run(self.state["parent"]).info.experiment_id

    def create(self, name: str, tags: dict[str, str], params: Mapping[str, Any]) -> str:
        """Id of a new run in the chain's experiment, see `create_run`."""
        return create_run(self.client, self.experiment, name, tags, params)

    def save(self) -> None:
        """Keep run ids and offsets in the run's folder."""
        write_json(self.path, self.state)

    def run_of(self, place: StageFolder) -> str:
        """Id of a stage's run, a child of the chain's (or that one itself, of a study's trial of one stage).

        Created where it is missing, the same one after a resume.
        """
        name = place.path.name
        if name not in self.state["stages"]:
            about = About.read(place.about)
            if self.flat:
                run = self.state["parent"]
                send_params(self.client, run, about.params)
                for key, value in about.tags.items():
                    self.client.set_tag(run, key, value)
            else:
                tags = {**about.tags, PARENT: self.state["parent"]}
                run = self.create(f"{self.recipe.name}/{name}", tags, about.params)
            self.state["stages"][name] = run
            self.save()
        return self.state["stages"][name]

    def deliver(self, place: StageFolder) -> None:
        """Send what MLflow does not have yet of a stage; what arrived is not sent again.

        A point that is sent twice all the same, since the driver died before it took note, has the same time, step and
        value, and MLflow keeps it once.
        """
        run = self.run_of(place)
        for path in (place.record, place.system):
            lines, end = read_record(path, self.sent(path))
            if lines:
                send_lines(self.client, run, place, lines)
                self.state["sent"][key_of(path)] = end
                self.save()
        if self.ends(place):
            self.deliver_end(place, run)
            self.state["ended"].append(place.path.name)
            self.save()

    def ends(self, place: StageFolder) -> bool:
        """Whether a stage has ended, and MLflow does not know it."""
        return place.result.exists() and place.path.name not in self.state["ended"]

    def deliver_end(self, place: StageFolder, run: str) -> None:
        """Upload a finished stage's checkpoint, put its numbers on the parent, end its run."""
        done = Result.read(place.result)
        self.client.log_artifact(run, str(final_weights(place)), "checkpoint")
        scores = {"mIoU": done.miou, "mIoU_before": done.miou_before} if done.val_rows else {}
        head = "" if self.flat else f"{place.path.name}/"
        points = [
            Point(f"{head}{key}", value * 100, done.time, 0) for key, value in scores.items() if value is not None
        ]
        send_metrics(self.client, self.state["parent"], points)
        self.client.set_terminated(run, "FINISHED", end_time=done.time)

    def undelivered(self) -> list[str]:
        """Stages of which MLflow lacks something."""
        places = [self.folder.stage(stage.name) for stage in self.recipe.stages]
        return [place.path.name for place in places if self.ends(place) or self.lacks_lines(place)]

    def lacks_lines(self, place: StageFolder) -> bool:
        """Whether MLflow lacks lines of a stage's records."""
        return any(read_record(path, self.sent(path))[0] for path in (place.record, place.system))

    def sent(self, path: Path) -> int:
        """Bytes of a stage's record that MLflow has."""
        return self.state["sent"].get(key_of(path), 0)

    @contextlib.contextmanager
    def sending(self, stages: Sequence[str]) -> Iterator[None]:
        """Send these stages while the body trains them; their runs end as the body does."""
        sender, status = Sender(self, [self.folder.stage(name) for name in stages]), "FAILED"
        try:
            with Polling(sender.deliver, sender.pause, "mlflow-sender", last=True):
                yield
            status = "FINISHED"
        except (KeyboardInterrupt, Stopped):
            status = "KILLED"
            raise
        finally:
            self.settle(status)

    def settle(self, status: str) -> None:
        """Set the final status of the chain's run and of stages that did not finish; say what is still to be sent."""
        ended = False
        try:
            for name, run in self.state["stages"].items():
                if name not in self.state["ended"] and status != "FINISHED":
                    self.client.set_terminated(run, status)
            self.client.set_terminated(self.state["parent"], status)
            ended = True
        except Exception as error:
            self.warn("ending the runs", error)
        if lacks := ", ".join([*self.undelivered(), *([] if ended else ["how it ended"])]):
            print(
                f"warning: MLflow at {self.uri} lacks parts of the run ({lacks}); nothing is lost: when it answers "
                f"again, send them with\n  python -m pipelines.replay {self.folder.path}",
                file=sys.stderr,
            )

    def resume(self) -> None:
        """Mark the chain's run, and those of its unfinished stages, as running."""
        try:
            names = [name for name in self.state["stages"] if name not in self.state["ended"]]
            for run in [self.state["parent"], *(self.state["stages"][name] for name in names)]:
                self.client.update_run(run, "RUNNING")
        except Exception as error:
            self.warn("resuming the runs", error)

    def warn(self, doing: str, error: Exception) -> None:
        """A tracking server that fails costs a line on the screen, never the training."""
        print(f"warning: MLflow at {self.uri}, {doing}: {first_line(error)}", file=sys.stderr, flush=True)

    def ui_command(self) -> str:
        """The line that opens the MLflow page."""
        if self.uri.startswith(("http:", "https:")):
            return f"MLflow: {self.uri}"
        return f"uv run mlflow ui --backend-store-uri {self.uri}"


def key_of(path: Path) -> str:
    """The name of a stage's record in the state."""
    return f"{path.parent.name}/{path.name}"


class Sender:
    """Delivers stages to MLflow as they grow; tries again every `RETRY_S` while the server is away."""

    def __init__(self, tracker: Tracker, places: Sequence[StageFolder]) -> None:
        self.tracker, self.places, self.away = tracker, places, False

    def pause(self) -> float:
        """Seconds until it tries again."""
        return RETRY_S if self.away else POLL_S

    def deliver(self) -> None:
        """All stages that have begun, in their order."""
        try:
            for place in self.places:
                if place.record.exists():
                    self.tracker.deliver(place)
        except Exception as error:  # whatever a client can raise
            if not self.away:
                self.tracker.warn("sending", error)
                print("  training goes on; the record keeps everything and is sent when it is back", file=sys.stderr)
            self.away = True
        else:
            if self.away:
                print(f"MLflow at {self.tracker.uri} is back and has everything", file=sys.stderr)
            self.away = False
