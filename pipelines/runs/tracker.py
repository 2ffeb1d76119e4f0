"""The runs of a chain in MLflow: a parent, and a child per stage, fed from the local record.

The run of a study's trial is a child of the study's; a trial of one stage has no run below it.

The record (record.jsonl) is the truth. A `Sender` in the driver reads it while the workers write and sends it on; how
far it sent is kept in the run's folder. So a resumed run continues the same MLflow runs without a doubled step, a
server that is away, from the start or later, is caught up with, and `python -m pipelines.replay` sends what it did not
come back for. What was deleted in MLflow is restored, as long as MLflow has it; else it is made again, from the record.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.base.errors import Stopped, users_message
from pipelines.base.files import write_json
from pipelines.base.polling import Polling
from pipelines.recipes.recipe import Recipe, flatten, to_page, to_yaml
from pipelines.runs.folder import RunFolder, StageFolder
from pipelines.runs.local_store import file_of
from pipelines.runs.mlflow_client import (
    KEY,
    NOTE,
    PARENT,
    Point,
    connect,
    create_run,
    default_uri,
    find_experiment,
    find_run,
    look_at,
    send_metrics,
    send_params,
    set_tags,
)
from pipelines.runs.mlflow_faults import check_address, explain
from pipelines.runs.mlflow_lines import send_lines
from pipelines.runs.mlflow_models import has_model, send_stage_model
from pipelines.runs.record import read_record
from pipelines.runs.results import About, Result, f1_of, final_weights, mean_of
from pipelines.runs.sender import GOES_ON, Sender

OURS = ("**Failed:**", "`final/mIoU` in percent:")  # how descriptions begin that this file wrote


class Tracker:
    """The MLflow runs of one chain. Nothing that MLflow does, or fails to do, stops a training.

    Attributes:
        state: what is kept in the run's folder: `uri`, `key` and the ids of the runs, how far each record was `sent`,
            which stages have `ended`, ids of the `models` by run, and how the chain did (`end`: status, error, and the
            error's whole text).
        ready: whether the runs were found or created since the server last failed.
    """

    def __init__(
        self,
        recipe: Recipe,
        output: Path,
        folder: Path,
        uri: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Read what is noted of the runs of `folder`; MLflow is not asked before `connect`.

        Args:
            recipe: the chain's.
            output: where the default store and its artifacts are.
            folder: the run's.
            uri: the tracking server, if not the recipe's, the environment's or the default.
            tags: of a study's trial: the study's run as its parent, variant and seed.

        Raises:
            SetupError: MLflow can never be at the address.
        """
        self.uri = uri or recipe.tracking or default_uri(output)
        check_address(self.uri)
        self.recipe, self.output, self.folder, self.tags = recipe, output, RunFolder(folder), dict(tags or {})
        self.path = self.folder.tracking
        self.known: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}
        same = self.known.get("uri") == self.uri
        self.state = self.fresh() | {k: v for k, v in self.known.items() if same or k == "end"}
        self.ready = self.live = False
        self.told = ""  # the last warning
        self.client: Any = None
        self.experiment: str | None = None

    def fresh(self) -> dict[str, Any]:
        """The state of a run that MLflow knows nothing of."""
        flat = bool(self.tags) and len(self.recipe.stages) == 1
        return {"uri": self.uri, "key": uuid.uuid4().hex, "flat": flat, "stages": {}, "sent": {}, "ended": []}

    @property
    def flat(self) -> bool:
        """Whether the only stage's metrics go to the trial's own run."""
        return self.state["flat"]

    def connect(self) -> None:
        """Find the chain's runs in MLflow, or create the parent; nothing where that was done already.

        Raises:
            Exception: what MLflow or the network raise, see `explain`.
        """
        if self.ready:
            return
        self.client = connect(self.uri, self.say)
        self.recognise()
        self.check_runs()
        if "parent" not in self.state:
            self.create_parent()
        if self.live:
            self.mark_running()
        self.ready = True

    def recognise(self) -> None:
        """Take over the notes of another address if this one has the run: the store was moved, or has a new name."""
        parent = self.known.get("parent")
        if (
            self.known.get("uri") != self.uri
            and "parent" not in self.state
            and parent
            and find_run(self.client, parent)
        ):
            self.state = self.fresh() | self.known | {"uri": self.uri}
            self.save()

    def check_runs(self) -> None:
        """Restore the runs that were deleted, and forget those that MLflow no longer has."""
        if (parent := self.state.get("parent")) is None:
            return
        if (found := find_run(self.client, parent, self.say)) is None:
            self.say("it no longer has this run: a new one is made, from the record")
            self.state = self.fresh() | {k: v for k, v in self.state.items() if k == "end"}
            return
        self.experiment = found.info.experiment_id
        if found.data.tags.get(PARENT) != self.tags.get(PARENT):  # the study's run was made again
            set_tags(self.client, parent, self.tags)
        for name, run in list(self.state["stages"].items()):
            if run != parent and find_run(self.client, run, self.say) is None:
                self.say(f"it no longer has the run of {name}: a new one is made, from the record")
                self.forget(name)
        kept = {run: model for run, model in self.state.get("models", {}).items() if has_model(self.client, model)}
        self.state["models"] = kept  # a model that was deleted there is logged again

    def forget(self, stage: str) -> None:
        """Have a stage sent again, to a new run."""
        del self.state["stages"][stage]
        self.state["sent"] = {key: end for key, end in self.state["sent"].items() if not key.startswith(f"{stage}/")}
        self.state["ended"] = [name for name in self.state["ended"] if name != stage]

    def create_parent(self) -> None:
        """The chain's run, with the recipe."""
        self.experiment = find_experiment(self.client, self.recipe.experiment, self.uri, self.say)
        if self.known.get("uri") in (None, self.uri):  # else the notes of another server stay until this one has it
            self.save()
        tags = {KEY: self.state["key"]} | self.tags
        parent = self.create(str(self.recipe.name), tags, flatten(to_page(self.recipe)))
        self.client.log_text(parent, to_yaml(self.recipe), self.folder.recipe.name)
        self.state["parent"] = parent
        self.save()

    def create(self, name: str, tags: Mapping[str, str], params: Mapping[str, Any]) -> str:
        """Id of a new run in the chain's experiment, see `create_run`."""
        return create_run(self.client, str(self.experiment), name, tags, params)

    def save(self) -> None:
        """Keep run ids and offsets in the run's folder."""
        write_json(self.path, self.state)
        self.known = dict(self.state)

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
                set_tags(self.client, run, about.tags)
            else:
                tags = {**about.tags, PARENT: self.state["parent"]}
                run = self.create(f"{self.recipe.name}/{name}", tags, about.params)
            self.state["stages"][name] = run
            self.save()
        return self.state["stages"][name]

    def deliver(self, place: StageFolder) -> None:
        """Send what MLflow does not have yet of a stage; what arrived is not sent again.

        A point that is sent twice after all, because the driver died before it took note, has the same time, step and
        value, and MLflow keeps it once.
        """
        self.connect()
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
        if self.lacks_model(place):
            self.state.setdefault("models", {})[run] = send_stage_model(self.client, run, place)
            self.save()

    def ends(self, place: StageFolder) -> bool:
        """Whether a stage has ended, and MLflow does not know it."""
        return place.result.exists() and place.path.name not in self.state["ended"]

    def deliver_end(self, place: StageFolder, run: str) -> None:
        """Upload a finished stage's checkpoint, put its numbers on the parent, end its run."""
        done = Result.read(place.result)
        self.client.log_artifact(run, str(final_weights(place)), "checkpoint")
        send_metrics(self.client, self.state["parent"], points_of(done, self.flat))
        self.client.set_terminated(run, "FINISHED", end_time=done.time)

    def undelivered(self) -> list[str]:
        """Stages of which MLflow lacks something."""
        places = [self.folder.stage(stage.name) for stage in self.recipe.stages]
        return [p.path.name for p in places if self.ends(p) or self.lacks_lines(p) or self.lacks_model(p)]

    def model_of(self, stage: str) -> str | None:
        """Id of the model that MLflow has of a stage's best weights."""
        return self.state.get("models", {}).get(self.state["stages"].get(stage))

    def lacks_model(self, place: StageFolder) -> bool:
        """Whether a stage has a packed model, and MLflow does not."""
        return place.model.exists() and place.result.exists() and self.model_of(place.path.name) is None

    def lacks_lines(self, place: StageFolder) -> bool:
        """Whether MLflow lacks lines of the records of a stage that has begun."""
        if not place.record.exists():
            return False
        return any(read_record(path, self.sent(path))[0] for path in (place.record, place.system))

    def sent(self, path: Path) -> int:
        """Bytes of a stage's record that MLflow has."""
        return self.state["sent"].get(key_of(path), 0)

    @contextlib.contextmanager
    def sending(self, stages: Sequence[str]) -> Iterator[None]:
        """Send these stages while the body trains them; their runs end as the body does, with its error."""
        sender = Sender(self, [self.folder.stage(name) for name in stages])
        end: dict[str, Any] = {"status": "FAILED"}
        try:
            with Polling(sender.deliver, sender.pause, "mlflow-sender", last=True):
                yield
            end = {"status": "FINISHED"}
        except (KeyboardInterrupt, Stopped):
            end = {"status": "KILLED"}
            raise
        except Exception as error:
            end |= {"error": users_message(error) or str(error) or type(error).__name__}
            end |= {"text": "".join(traceback.format_exception(error))}
            raise
        finally:
            self.settle(end)

    def settle(self, end: Mapping[str, Any]) -> None:
        """Note how the chain ended, and tell MLflow if it answers; say what is still to be sent."""
        self.state["end"] = dict(end)
        if self.known.get("uri") in (None, self.uri):  # else the notes of another server stay
            self.save()
        self.attempt(self.deliver_rest)
        told = self.attempt(lambda: self.send_end(end))
        if lacks := ", ".join([*self.undelivered(), *([] if told else ["how it ended"])]):
            print(
                f"warning: MLflow at {self.uri} lacks parts of the run ({lacks}); nothing is lost: when it answers "
                f"again, send them with\n  python -m pipelines.replay {shlex.quote(str(self.folder.path))}",
                file=sys.stderr,
            )

    def attempt(self, act: Callable[[], None]) -> bool:
        """Whether something could be done; tried twice, because what was deleted in MLflow is restored in between."""
        for _ in range(2):
            try:
                self.connect()
            except Exception as error:
                self.warn(error)
                return False
            try:
                act()
            except Exception as error:
                self.warn(error)
            else:
                return True
        return False

    def deliver_rest(self) -> None:
        """Send what MLflow still lacks of the stages."""
        for name in self.undelivered():
            self.deliver(self.folder.stage(name))

    def end_of_stages(self) -> Mapping[str, Any]:
        """How a chain ended that does not run: as it noted, or by being killed, unless all its stages are done."""
        done = all(self.folder.stage(stage.name).result.exists() for stage in self.recipe.stages)
        return {"status": "FINISHED"} if done else self.state.get("end", {"status": "KILLED"})

    def send_end(self, end: Mapping[str, Any]) -> None:
        """The status of the chain's run and of the stages that did not end; of a failed one with its error.

        Args:
            end: `status`, and of a failed one `error` and the whole `text`.

        Raises:
            Exception: what MLflow or the network raise.
        """
        parent = self.state["parent"]
        if text := end.get("text"):
            self.client.log_text(parent, text, self.folder.error.name)
        open_runs = [run for name, run in self.state["stages"].items() if name not in self.state["ended"]]
        for run in open_runs if end["status"] != "FINISHED" else []:
            set_tags(self.client, run, {"error": end.get("error")})
            self.client.set_terminated(run, end["status"])
        set_tags(self.client, parent, {"error": end.get("error")} | self.description(end))
        self.client.set_terminated(parent, end["status"])

    def description(self, end: Mapping[str, Any]) -> dict[str, str | None]:
        """The tag that MLflow shows above a run's numbers; one that somebody wrote there stays."""
        written = self.client.get_run(self.state["parent"]).data.tags.get(NOTE)
        if self.flat or (written and not written.startswith(OURS)):
            return {}
        if "error" in end:
            return {NOTE: f"{OURS[0]} {end['error']}"}
        places = [self.folder.stage(stage.name).result for stage in self.recipe.stages]
        scored = [done for done in map(Result.read, filter(Path.exists, places)) if done.miou is not None]
        return {NOTE: f"{OURS[1]} {scored[-1].stage}, {scored[-1].protocol}" if scored else None}

    def resume(self) -> None:
        """Find or create the runs and mark them as running; a server that does not answer is asked again later."""
        self.live = True
        self.state.pop("end", None)
        try:
            self.connect()
        except Exception as error:
            self.warn(error)
            print(GOES_ON, file=sys.stderr, flush=True)

    def mark_running(self) -> None:
        """Mark the chain's run, and those of its unfinished stages, as running, without the error of the last time."""
        names = [name for name in self.state["stages"] if name not in self.state["ended"]]
        for run in dict.fromkeys([self.state["parent"], *(self.state["stages"][name] for name in names)]):
            set_tags(self.client, run, {"error": None})
            self.client.update_run(run, "RUNNING")

    def say(self, text: str) -> None:
        """Tell what MLflow did not do by itself."""
        print(f"MLflow at {self.uri}: {text}", file=sys.stderr, flush=True)

    def warn(self, error: Exception) -> None:
        """A tracking server that fails costs a line on the screen, never the training; the same line once."""
        self.ready, text = False, explain(self.uri, error)
        if text != self.told:
            print(f"warning: {text}", file=sys.stderr, flush=True)
        self.told = text

    def ui_command(self) -> str:
        """What opens the run's page: see `look_at`."""
        return look_at(self.uri, self.experiment, self.state.get("parent"))


def points_of(done: Result, flat: bool) -> list[Point]:
    """The scores of a stage on the chain's run: under the stage's name, and as `final`, which all chains share.

    The last stage that was scored is the one that `final` shows, so that chains of unlike stages chart together.

    Args:
        done: the stage.
        flat: whether the run is the stage's own too.
    """
    scores = {"mIoU": done.miou, "mIoU_before": done.miou_before} if done.val_rows else {}
    named = {f"{'' if flat else f'{done.stage}/'}{key}": value for key, value in scores.items()}
    named |= {f"final/{key}": value for key, value in {**scores, "mF1": mean_of(f1_of(done.iou))}.items()}
    return [Point(key, value * 100, done.time, 0) for key, value in named.items() if value is not None]


def key_of(path: Path) -> str:
    """The name of a stage's record in the state."""
    return f"{path.parent.name}/{path.name}"


def last_address(notes: Path) -> str | None:
    """Where a run or a study logged to; None for its default address, as of a store that was moved together with it.

    Args:
        notes: its `tracking` file.
    """
    uri: str | None = json.loads(notes.read_text()).get("uri") if notes.exists() else None
    store = file_of(uri or "")
    return uri if store is None or store.exists() else None
