"""The runs of a chain in MLflow: a parent, and a child per stage, fed from the local record.

The run of a study's trial is a child of the study's; a trial of one stage has no run below it.

The record (record.jsonl) is the truth. A `Sender` in the driver reads it while the workers write and sends it on; how
far it sent is kept in the run's folder. So a resumed run continues the same MLflow runs without a doubled step, a
server that is away, from the start or later, is caught up with, and `python -m pipelines.replay` sends what it did not
come back for. What was deleted in MLflow is restored, as long as MLflow has it; else it is made again, from the record.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.base.errors import Stopped, users_message
from pipelines.base.polling import Polling
from pipelines.recipes.recipe import Recipe, Stage, flatten, to_page, to_yaml
from pipelines.runs.curves import curves_figure
from pipelines.runs.folder import RunFolder, StageFolder
from pipelines.runs.mlflow_client import (
    KEY,
    PARENT,
    Point,
    default_uri,
    send_costs,
    send_inputs,
    send_metrics,
    send_params,
    set_tags,
)
from pipelines.runs.mlflow_inputs import shards_of
from pipelines.runs.mlflow_lines import CURVES, send_chain_lines, send_figure, send_lines
from pipelines.runs.mlflow_models import has_model, send_stage_model
from pipelines.runs.mlflow_note import send_note
from pipelines.runs.mlflow_runs import create_run, find_run
from pipelines.runs.note import write_up
from pipelines.runs.provenance import note_origin, origin
from pipelines.runs.record import read_record
from pipelines.runs.results import About, Result, f1_of, final_weights, finished, mean_of
from pipelines.runs.sender import GOES_ON, Sender
from pipelines.runs.subject import subject
from pipelines.runs.tracked import Tracked
from pipelines.runs.where import address_of, is_bucket


class Tracker(Tracked):
    """The MLflow runs of one chain.

    Attributes:
        state: also ids of the `stages`' runs, how far each record was `sent`, which stages have `ended`, ids of the
            `models` by run, and how the chain did (`end`: status, error, and the error's whole text).
    """

    top = "parent"

    def __init__(
        self,
        recipe: Recipe,
        output: Path,
        folder: Path,
        uri: str | None = None,
        tags: Mapping[str, str] | None = None,
        origin_of_study: Mapping[str, str] | None = None,
        bring: Callable[[Path], None] = lambda path: None,
    ) -> None:
        """Read what is noted of the runs of `folder`; MLflow is not asked before `connect`.

        Args:
            recipe: the chain's.
            output: where the default store and its artifacts are.
            folder: the run's.
            uri: the tracking server, if not the recipe's, the environment's or the default.
            tags: of a study's trial: the study's run as its parent, variant and seed.
            origin_of_study: of a trial: where its study comes from.
            bring: has a file of weights here, of a run in a bucket.

        Raises:
            SetupError: MLflow can never be at the address.
        """
        self.recipe, self.folder, self.tags = recipe, RunFolder(folder), dict(tags or {})
        self.origin_of_study, self.live, self.bring = dict(origin_of_study or {}), False, bring
        super().__init__(self.folder.tracking, uri or recipe.tracking or default_uri(output))

    def fresh(self) -> dict[str, Any]:
        flat = bool(self.tags) and len(self.recipe.stages) == 1
        return super().fresh() | {"flat": flat, "stages": {}, "sent": {}, "ended": []}

    @property
    def flat(self) -> bool:
        """Whether the only stage's metrics go to the trial's own run."""
        return self.state["flat"]

    @property
    def origin(self) -> dict[str, str]:
        """Where the run comes from, as tags."""
        return origin(self.folder.origin) or self.origin_of_study

    def experiment_name(self) -> str:
        return self.recipe.experiment

    def goes_on(self) -> bool:
        return self.live

    def open_runs(self) -> list[str]:
        return [self.run_id, *(run for name, run in self.state["stages"].items() if name not in self.state["ended"])]

    def mark_running(self) -> None:
        super().mark_running()
        self.describe(self.run_id, self.recipe.stages)

    def look_below(self, run: Any) -> None:
        """Restore the stages' runs that were deleted, and forget those that MLflow no longer has."""
        if run.data.tags.get(PARENT) != self.tags.get(PARENT):  # the study's run was made again
            set_tags(self.client, self.run_id, self.tags)
        for name, stage in list(self.state["stages"].items()):
            if stage != self.run_id and find_run(self.client, stage, self.say) is None:
                self.say(f"it no longer has the run of {name}: a new one is made, from the record")
                self.forget(name)
        if models := self.state.get("models"):  # one that was deleted there is logged again
            self.state["models"] = {run: model for run, model in models.items() if has_model(self.client, model)}

    def forget(self, stage: str) -> None:
        """Have a stage sent again, to a new run."""
        del self.state["stages"][stage]
        self.state["sent"] = {key: end for key, end in self.state["sent"].items() if not key.startswith(f"{stage}/")}
        self.state["ended"] = [name for name in self.state["ended"] if name != stage]

    def create_top(self) -> None:
        """The chain's run, with the recipe."""
        tags = subject(self.recipe) | {KEY: self.state["key"]} | self.tags
        began = self.state.get("began") or self.began(self.recipe.stages[0].name)
        parent = self.create(str(self.recipe.name), tags, flatten(to_page(self.recipe)), began)
        self.client.log_text(parent, to_yaml(self.recipe), self.folder.recipe.name)
        self.state["parent"] = parent
        self.describe(parent, self.recipe.stages)

    def create(self, name: str, tags: Mapping[str, str], params: Mapping[str, Any], began: int | None = None) -> str:
        """Id of a new run in the chain's experiment, see `create_run`."""
        return create_run(self.client, str(self.experiment), name, self.ordered(tags), params, began)

    def began(self, stage: str) -> int | None:
        """When a stage began, in ms; None where it has not."""
        return min((line["time"] for line in self.lines(stage)), default=None)

    def lines(self, stage: str) -> list[dict[str, Any]]:
        """The record of a stage."""
        return read_record(self.folder.stage(stage).record)[0]

    def ordered(self, tags: Mapping[str, str]) -> dict[str, str]:
        """A new run's tags, where it comes from behind what it is about: its page shows them in their order."""
        shown = {key: value for key, value in tags.items() if key != KEY}
        return {**shown, **{k: v for k, v in self.origin.items() if k not in tags}, **tags}

    def describe(self, run: str, stages: Sequence[Stage], error: str = "") -> None:
        """The note on these stages, which the page shows above a run's numbers."""
        runs = self.state["stages"]
        send_note(self.client, run, write_up(self.recipe, self.folder, stages, self.origin, runs, run, error))

    def run_of(self, place: StageFolder) -> str:
        """Id of a stage's run, a child of the chain's (or that one itself, of a study's trial of one stage).

        Created where it is missing, the same one after a resume.
        """
        name = place.path.name
        if name not in self.state["stages"]:
            about, stage = About.read(place.about), self.stage(name)
            if self.flat:
                run = self.run_id
                send_params(self.client, run, about.params)
            else:
                tags = {**subject(self.recipe, stage), **about.tags, PARENT: self.run_id}
                run = self.create(f"{self.recipe.name}/{name}", tags, about.params, self.began(name))
            set_tags(self.client, self.run_id, about.tags)
            for one in {run, self.run_id}:  # on the chain's run too, next to `final/mIoU`
                send_costs(self.client, one, about.costs)
            for reader in {run, self.run_id, self.tags.get(PARENT, run)}:  # the stage, its chain, its study
                send_inputs(self.client, reader, shards_of(about, stage))
            self.describe(run, [stage])
            self.state["stages"][name] = run
            self.save()
        return self.state["stages"][name]

    def stage(self, name: str) -> Stage:
        """The recipe's stage of a name."""
        return next(stage for stage in self.recipe.stages if stage.name == name)

    def steps_before(self, name: str) -> int:
        """Steps of the chain before a stage begins."""
        names = [stage.name for stage in self.recipe.stages]
        before = [self.folder.stage(other).about for other in names[: names.index(name)]]
        return sum(About.read(about).steps for about in before)

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
                if not self.flat:
                    send_chain_lines(self.client, self.run_id, self.steps_before(place.path.name), lines)
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
        self.bring(final_weights(place))
        self.client.log_artifact(run, str(final_weights(place)), "checkpoint")
        send_metrics(self.client, self.run_id, points_of(done, self.flat))
        self.draw(run, [self.stage(place.path.name)])
        self.describe(run, [self.stage(place.path.name)])
        if not self.flat:
            self.draw(self.run_id, self.recipe.stages)
            self.describe(self.run_id, self.recipe.stages)
        self.client.set_terminated(run, "FINISHED", end_time=done.time)

    def draw(self, run: str, stages: Sequence[Stage]) -> None:
        """Loss and mIoU of these stages, as far as they are, over one axis of steps."""
        first = self.steps_before(stages[0].name)
        shown = {s.name: (self.steps_before(s.name) - first, self.lines(s.name)) for s in stages if self.lines(s.name)}
        send_figure(self.client, run, CURVES, lambda: curves_figure(shown))

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
        self.state["end"] = {"time": int(time.time() * 1000), **end}
        if self.ours:
            self.save()
        self.attempt(self.deliver_rest)
        told = self.attempt(lambda: self.send_end(self.state["end"]))
        place = address_of(self.recipe) if is_bucket(self.recipe.output) else str(self.folder.path)
        if lacks := ", ".join([*self.undelivered(), *([] if told else ["how it ended"])]):
            print(
                f"warning: MLflow at {self.uri} lacks parts of the run ({lacks}); nothing is lost: when it answers "
                f"again, send them with\n  python -m pipelines.replay {shlex.quote(place)}",
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
        times = [line["time"] for stage in self.recipe.stages for line in self.lines(stage.name)]
        results, noted = finished(self.recipe, self.folder.path), self.state.get("end", {})
        if results and noted.get("status") != "FINISHED":
            noted = {"status": "FINISHED"}
        last = results[-1].time if results else max(times, default=None)
        return {"status": "KILLED", "time": last, **noted}  # up to 0.4.0 no time is noted

    def send_end(self, end: Mapping[str, Any]) -> None:
        """The status of the chain's run and of the stages that did not end; of a failed one with its error.

        Args:
            end: `status`, `time` in ms, and of a failed one `error` and the whole `text`.

        Raises:
            Exception: what MLflow or the network raise.
        """
        parent, error = self.run_id, end.get("error")
        if text := end.get("text"):
            self.client.log_text(parent, text, self.folder.error.name)
        for name, run in self.state["stages"].items():
            if name not in self.state["ended"] and end["status"] != "FINISHED":
                self.describe(run, [self.stage(name)], error or "")
                set_tags(self.client, run, {"error": error})
                self.client.set_terminated(run, end["status"], end_time=end.get("time"))
        self.describe(parent, self.recipe.stages, error or "")
        set_tags(self.client, parent, {"error": error})
        self.client.set_terminated(parent, end["status"], end_time=end.get("time"))

    def resume(self) -> None:
        """Find or create the runs and mark them as running; a server that does not answer is asked again later."""
        self.live = True
        self.state.pop("end", None)
        self.state.setdefault("began", int(time.time() * 1000))
        note_origin(self.folder.origin)
        try:
            self.connect()
        except Exception as error:
            self.warn(error, GOES_ON)


def points_of(done: Result, flat: bool) -> list[Point]:
    """The scores of a stage on the chain's run: under the stage's name, and as `final`, which all chains share.

    The last stage that was scored is the one that `final` shows, so that chains of unlike stages chart together.

    Args:
        done: the stage.
        flat: whether the run is the stage's own too.
    """
    metric = done.metric
    scores = {metric: done.miou, f"{metric}_before": done.miou_before} if done.val_rows else {}
    scores |= {f"test/{name}/mIoU": test["miou"] for name, test in done.tests.items()}
    named = {f"{'' if flat else f'{done.stage}/'}{key}": value for key, value in scores.items()}
    more = {"mF1": mean_of(f1_of(done.iou))} if metric == Result.metric else done.named
    named |= {f"final/{key}": value for key, value in {**scores, **more}.items()}
    return [Point(key, value * 100, done.time, 0) for key, value in named.items() if value is not None]


def key_of(path: Path) -> str:
    """The name of a stage's record in the state."""
    return f"{path.parent.name}/{path.name}"
