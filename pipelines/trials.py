"""One trial of a study: its folder, which is its whole state, and what Ray Tune runs of it on the cluster.

A trial's folder is a run's: recipe.yaml, a folder per stage with record, checkpoints and done.json. Beside them lies
`ended.json` where it ended before its last step. So Tune needs to remember nothing: whoever enters the folder goes on
from its last checkpoint, and tells Tune again what the record holds.
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

from pipelines.cluster import Sizes
from pipelines.recipe import Recipe
from pipelines.record import read_record, write_text
from pipelines.runs import finished

ENDED = "ended.json"
POINT = "point.json"  # of a trial that a search proposed
PART = "part.json"  # of one that trains a part of the steps: `until` which share of them, `origin` whose weights
POLL_S = 0.1
STATUSES = ("waiting", "running", "done", "stopped", "failed")


@dataclass(frozen=True)
class Place:
    """What the trials of a study share: `folder`, the root of the shards, the output folder, the size of a trial."""

    folder: Path
    root: str
    output: Path
    sizes: Sizes

    def trial(self, name: str) -> Path:
        """A trial's folder."""
        return self.folder / "trials" / name

    def point(self, name: str) -> dict[str, Any]:
        """Where a trial of a search lies in its space."""
        return json.loads((self.trial(name) / POINT).read_text())

    def share(self, name: str) -> dict[str, float]:
        """`steps`: up to which share of them a trial trains, where it is a part of a training."""
        part = self.trial(name) / PART
        return {"steps": round(json.loads(part.read_text())["until"], 4)} if part.exists() else {}


def enter(config: dict[str, Any]) -> None:
    """What Tune runs in an actor of its own: the trial of `config`, its validations reported as they are recorded.

    A fault of the input would only come again, so it ends the trial with a note; anything else is raised, and Tune
    enters the folder anew.
    """
    from ray import tune

    from pipelines.cluster import quiet
    from pipelines.door import Stopped, check_names, users_message
    from pipelines.recipe import load_recipe

    check_names()
    quiet()
    place: Place = pickle.loads(config["place"])
    folder = place.trial(config["name"])
    recipe = load_recipe(folder / "recipe.yaml")
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
    write_text(folder / ENDED, json.dumps({"status": status, "time": int(time.time() * 1000), **facts}))


def follow(recipe: Recipe, place: Place, folder: Path, followed: bool) -> Iterator[dict[str, Any]]:
    """Train in a thread; yields each validation, those of an earlier attempt first.

    While a trial that is `followed` trains, the processes of the next one start.

    Raises:
        whatever the training raises.
    """
    from pipelines.preflight import plan_legs
    from pipelines.prestart import controller_environment, one_more, prestart
    from pipelines.runs import locked
    from pipelines.screen import shown
    from pipelines.stages import fit, prepare_legs

    with locked(folder):
        legs = plan_legs(recipe, place.root, folder)
        jobs, parts = prepare_legs(recipe, legs, folder, place.sizes, place.output)
        if (folder / PART).exists():
            share = json.loads((folder / PART).read_text())["until"]
            jobs = [dataclasses.replace(job, until=round(job.steps * share)) for job in jobs]
        jobs = [dataclasses.replace(job, succeeded=followed) for job in jobs[:1]] + jobs[1:]
        timeline(folder, "planned")
        box: list[BaseException] = []

        def train() -> None:
            try:
                with shown(parts):
                    fit(jobs, folder)
            except BaseException as error:
                box.append(error)

        thread = threading.Thread(target=train, name="trial", daemon=True)
        if jobs:
            thread.start()
        points = Points(folder, [(leg.stage.name, leg.steps) for leg in legs])
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
    """The validations in a trial's records: how far the trial is, 0 to 1, and its mIoU there."""

    def __init__(self, folder: Path, stages: Sequence[tuple[str, int]]) -> None:
        self.folder, self.stages = folder, stages
        self.read = dict.fromkeys((name for name, _ in stages), 0)
        self.begun = False  # whether a line tells of a step

    def new(self) -> Iterator[dict[str, Any]]:
        """Those that were not yielded yet."""
        before, total = 0, sum(steps for _, steps in self.stages)
        for name, steps in self.stages:
            lines, self.read[name] = read_record(self.folder / name / "record.jsonl", self.read[name])
            for line in lines:
                self.begun |= line["step"] > 0
                if line["kind"] == "val" and line["step"]:
                    yield {"progress": (before + line["step"]) / total, "miou": line["miou"], "stage": name,
                           "step": line["step"], "recorded": line["time"] / 1000}  # fmt: skip
            before += steps


def points_of(recipe: Recipe, folder: Path) -> Points:
    """The validations of a trial that began."""
    steps = [json.loads((folder / stage.name / "about.json").read_text())["steps"] for stage in recipe.stages]
    return Points(folder, [(stage.name, number) for stage, number in zip(recipe.stages, steps, strict=True)])


def timeline(folder: Path, what: str, **facts: float) -> None:
    """Note a moment of a trial, for the benchmark of what a study costs."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "timeline.jsonl").open("a") as file:
        file.write(json.dumps({"what": what, "time": time.time(), **facts}) + "\n")


def ended(recipe: Recipe, folder: Path) -> dict[str, Any] | None:
    """How a trial ended: `status` done, stopped or failed, and `miou`, `progress` or `why`; None while it has not."""
    if (folder / ENDED).exists():  # first: its workers may reach their last step before they are gone
        return json.loads((folder / ENDED).read_text())
    if not (results := finished(recipe, folder)):
        return None
    scored = [result["miou"] for result in results if result["miou"] is not None]
    facts = {"progress": 1.0, "time": results[-1]["time"], "miou": scored[-1] if scored else None}
    return {"status": "done", **facts}


def row_of(variant: str, seed: int, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The trial's line for the study's table: fractions, counts, GMACs, MiB, images/s of its last stage."""
    end = ended(recipe, folder) or {"status": "waiting"}
    row: dict[str, Any] = {"variant": variant, "seed": seed, "status": end["status"]}
    row["miou"] = end["miou"] if end["status"] == "done" else None
    about = folder / recipe.stages[-1].name / "about.json"
    if about.exists():
        params = json.loads(about.read_text())["params"]
        row |= {"parameters": params["cost.parameters"], "gmacs": params["cost.macs"] / 1e9}
        row["activation_mib"] = params["cost.activation_bytes"] / 2**20
    if end["status"] == "done":
        lines, _ = read_record(about.parent / "record.jsonl")
        row["memory_mib"] = max((line["gpu_mib"] for line in lines if "gpu_mib" in line), default=None)
        row["images_per_s"] = json.loads((about.parent / "done.json").read_text())["images_per_s"]
    return row
