"""One trial of a study: its folder, which is its whole state, and what Ray Tune runs of it on the cluster.

A trial's folder is a run's, with a note of how it ended where that was before its last step. So Tune needs to remember
nothing: a process that enters the folder goes on from its last checkpoint, and tells Tune again what the record holds.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.cluster.inside_ray import controller_environment, one_more, prestart
from pipelines.cluster.sizes import Sizes
from pipelines.recipes.recipe import Recipe
from pipelines.runs.folder import RunFolder, StudyFolder
from pipelines.runs.record import append, read_record
from pipelines.runs.results import About, Noted, Result, finished
from pipelines.studies.scores import scores_of

POLL_S = 0.1
SAID = "said"  # what a line of the timeline is that the screen shows
STATUSES = ("waiting", "running", "done", "stopped", "failed")


@dataclass(frozen=True)
class TrialContext:
    """What the trials of a study share: `folder`, the root of the shards, the output folder, the size of a trial."""

    folder: Path
    root: str
    output: Path
    sizes: Sizes

    @property
    def study(self) -> StudyFolder:
        """The study's files."""
        return StudyFolder(self.folder)

    def files(self, name: str) -> RunFolder:
        """A trial's files."""
        return self.study.trial(name)

    def trial(self, name: str) -> Path:
        """A trial's folder."""
        return self.files(name).path

    def point(self, name: str) -> dict[str, Any]:
        """Where a trial of a search is in its space."""
        return json.loads(self.files(name).point.read_text())

    def share(self, name: str) -> dict[str, float]:
        """`steps`: up to which share of them a trial trains, where it is a part of a training."""
        part = self.files(name).part
        return {"steps": round(Part.read(part).until, 4)} if part.exists() else {}


@dataclass(frozen=True)
class Part(Noted):
    """A trial that trains a part of the steps: up to which share of them, and from whose weights (None: its own)."""

    until: float
    origin: str | None


@dataclass(frozen=True)
class TrialEnd(Noted):
    """How a trial ended: `status` done, stopped or failed; how far, 0 to 1, its mIoU there (or what else its task
    scores: the key is older than other tasks), or why; `time` in ms."""

    status: str
    time: int = 0
    progress: float | None = None
    miou: float | None = None
    why: str | None = None


def enter(config: dict[str, Any]) -> None:
    """What Tune runs in an actor of its own: the trial of `config`, its validations reported as they are recorded.

    A fault of the input would only come again, so it ends the trial with a note; anything else is raised, and Tune
    enters the folder again.
    """
    from ray import tune

    from pipelines.base.door import check_names
    from pipelines.base.errors import Stopped, users_message
    from pipelines.cluster.session import quiet
    from pipelines.recipes.reading import load_recipe

    check_names()
    quiet()
    place: TrialContext = pickle.loads(config["place"])
    folder = place.trial(config["name"])
    recipe = load_recipe(RunFolder(folder).recipe)
    timeline(folder, "entered")
    try:
        for point in follow(recipe, place, folder, config["followed"]):
            tune.report(point)
    except Stopped:
        return
    except Exception as error:
        if (message := users_message(error)) is None:
            raise
        end(folder, "failed", why=message)
    timeline(folder, "left")


def end(folder: Path, status: str, **facts: Any) -> None:
    """Note that a trial ended before its last step."""
    TrialEnd(status, int(time.time() * 1000), **facts).write(RunFolder(folder).ended)


def follow(recipe: Recipe, place: TrialContext, folder: Path, followed: bool) -> Iterator[dict[str, Any]]:
    """Train in a thread; yields each validation, those of an earlier attempt first.

    While a trial that is `followed` trains, the processes of the next one start.

    Raises:
        whatever the training raises.
    """
    from pipelines.driver.fit import fit
    from pipelines.driver.gauges import gauged
    from pipelines.driver.jobs import make_jobs
    from pipelines.driver.planned import plan_stages
    from pipelines.driver.start import start_of
    from pipelines.runs.run import locked
    from pipelines.runs.screen import shown

    with locked(folder):
        weights = start_of(recipe, place.output)
        planned = plan_stages(recipe, place.root, folder, seen=weights.seen)
        jobs, stages = make_jobs(recipe, planned, folder, place.sizes, weights)
        if (note := RunFolder(folder).part).exists():
            share = Part.read(note).until
            jobs = [dataclasses.replace(job, until=round(job.steps * share)) for job in jobs]
        jobs = [dataclasses.replace(job, has_successor=followed) for job in jobs[:1]] + jobs[1:]
        timeline(folder, "planned")
        box: list[BaseException] = []
        name = f"{folder.parent.parent.name}/{folder.name}"  # of the study and of the trial

        def train() -> None:
            try:
                with shown(stages), gauged(name, jobs, len(planned) - len(jobs)):
                    fit(jobs, folder, tell=lambda text: timeline(folder, SAID, text=text))
            except BaseException as error:
                box.append(error)

        thread = threading.Thread(target=train, name="trial", daemon=True)
        if jobs:
            thread.start()
        points = Points(folder, [(plan.stage.name, plan.steps) for plan in planned])
        held: list[dict[str, Any]] = []  # the last point would let Tune end the trial before it is done
        while thread.is_alive():
            if followed and points.begun:
                followed = False
                one_more()
                prestart(controller_environment(), 2)  # of its kind is the actor by which workers wait for each other
            for point in points.new():
                if point["progress"] < 1:
                    yield point
                else:
                    held.append(point)
            thread.join(POLL_S)
        yield from [*held, *points.new()]
    if box:
        raise box[0]


class Points:
    """The validations in a trial's records: how far the trial is, 0 to 1, and its score there, as `miou`."""

    def __init__(self, folder: Path, stages: Sequence[tuple[str, int]]) -> None:
        self.folder, self.stages = folder, stages
        self.read = dict.fromkeys((name for name, _ in stages), 0)
        self.begun = False  # whether a line tells of a step

    def new(self) -> Iterator[dict[str, Any]]:
        """Those that were not yielded yet."""
        before, total = 0, sum(steps for _, steps in self.stages)
        for name, steps in self.stages:
            lines, self.read[name] = read_record(RunFolder(self.folder).stage(name).record, self.read[name])
            for line in lines:
                self.begun |= line["step"] > 0
                if line["kind"] == "val" and line["step"]:
                    yield {"progress": (before + line["step"]) / total, "miou": line["miou"], "stage": name,
                           "step": line["step"], "recorded": line["time"] / 1000}  # fmt: skip
            before += steps


def points_of(recipe: Recipe, folder: Path) -> Points:
    """The validations of a trial that began."""
    steps = [About.read(RunFolder(folder).stage(stage.name).about).steps for stage in recipe.stages]
    return Points(folder, [(stage.name, number) for stage, number in zip(recipe.stages, steps, strict=True)])


def timeline(folder: Path, what: str, **facts: float | str) -> None:
    """Note a moment of a trial: for the benchmark of what a study costs, and `SAID` for the study's screen."""
    folder.mkdir(parents=True, exist_ok=True)
    with RunFolder(folder).marks.open("a") as file:
        append(file, {"what": what, "time": time.time(), **facts})


def ended(recipe: Recipe, folder: Path) -> TrialEnd | None:
    """How a trial ended; None while it has not."""
    if (note := RunFolder(folder).ended).exists():  # first: its workers may reach their last step before they are gone
        return TrialEnd.read(note)
    if not (results := finished(recipe, folder)):
        return None
    scored = [result.miou for result in results if result.miou is not None]
    return TrialEnd("done", results[-1].time, progress=1.0, miou=scored[-1] if scored else None)


def row_of(variant: str, seed: int, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The trial's line for the study's table: fractions, counts, GMACs, MiB, images/s of its last stage."""
    end, place = ended(recipe, folder) or TrialEnd("waiting"), RunFolder(folder).stage(recipe.stages[-1].name)
    row: dict[str, Any] = {"variant": variant, "seed": seed, "status": end.status}
    row["miou"] = end.miou if end.status == "done" else None
    if place.about.exists():
        params = About.read(place.about).params
        row |= {"parameters": params["cost.parameters"], "gmacs": params["cost.macs"] / 1e9}
        row["activation_mib"] = params["cost.activation_bytes"] / 2**20
    if end.status == "done":
        lines, _ = read_record(place.record)
        row["memory_mib"] = max((line["gpu_mib"] for line in lines if "gpu_mib" in line), default=None)
        row["images_per_s"] = Result.read(place.result).images_per_s
        scored = [result for result in finished(recipe, folder) if result.val_rows]
        row["tests"] = scores_of(scored[-1]) if scored else {}
    return row
