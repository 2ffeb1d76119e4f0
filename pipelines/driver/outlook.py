"""How long a training will take: by its own speed so far, else by an earlier run's, else by what a GPU can do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.recipes.recipe import Recipe, to_page
from pipelines.runs.folder import CHECKPOINTS, RunFolder
from pipelines.runs.provenance import hardware, origin
from pipelines.runs.record import read_record
from segmodels.gpus import STEP, Gpu
from segmodels.step_cost import StepCost

LINES = 20  # of the record, whose median counts
PACE = ("batch", "backbone", "head", "aux", "loss", "view", "feed")  # keys that decide the speed
PACE_WORKERS = ("count", "gpus", "precision", "channels_last", "compile", "recompute", "micro_batch", "feed_tasks")


@dataclass(frozen=True)
class Speed:
    """Images a second of all workers in training, and where that comes from."""

    images_per_s: float
    source: str


def measured_speed(recipe: Recipe, folder: Path, gpu: Gpu | None = None) -> Speed | None:
    """What this run did so far, else the newest run next to it that trained the same on the same hardware; else None.

    Args:
        folder: of the run.
        gpu: on which it would be instead of this machine; its own past does not count then.
    """
    if gpu is None and (images := speed_in(folder)):
        return Speed(images, "this run so far")
    here = hardware()["hardware"]
    for other in sorted(folder.parent.glob("*"), key=lambda path: -path.stat().st_mtime):
        run = RunFolder(other)
        if not run.recipe.exists() or not same_pace(recipe, yaml.safe_load(run.recipe.read_text())):
            continue
        there = origin(run.origin).get("hardware", "")
        if (gpu.name.split("-")[0] in there if gpu else there == here) and (images := speed_in(other)):
            day = time.strftime("%Y-%m-%d", time.localtime(run.recipe.stat().st_mtime))
            return Speed(images, f"run {other.name} of {day} on {there}")
    return None


def same_pace(recipe: Recipe, page: dict[str, Any]) -> bool:
    """Whether a run's page trains at the same pace: the same model and batch by the same workers."""
    own = to_page(recipe)
    return all(own[key] == page.get(key) for key in PACE) and all(
        own["workers"][key] == (page.get("workers") or {}).get(key) for key in PACE_WORKERS
    )


def speed_in(folder: Path) -> float:
    """Images a second in a run's records: the median of the last lines; 0 where there is none."""
    speeds = list(speeds_of(folder))[-LINES:]
    return statistics.median(speeds) if speeds else 0.0


def speeds_of(folder: Path) -> Iterator[float]:
    """Those of all lines, stage by stage in the order in which they were written."""
    stages = RunFolder(folder).stages()
    for stage in sorted((s for s in stages if s.record.exists()), key=lambda s: s.record.stat().st_mtime):
        yield from (line["images_per_s"] for line in read_record(stage.record)[0] if line["kind"] == "train")


def possible_speed(cost: StepCost, recipe: Recipe, gpu: Gpu) -> Speed:
    """What a step would take on a GPU that reaches as much of its roofline as an H200 did, and waits for nothing."""
    return Speed(recipe.batch / (cost.roofline(gpu) / STEP), f"roofline of {gpu.name} / {STEP}")


def done_steps(folder: Path, stage: str) -> int:
    """Steps from which a stage would go on."""
    found = [int(path.stem.partition("-")[2]) for path in RunFolder(folder).stage(stage).checkpoints.glob(CHECKPOINTS)]
    return max(found, default=0)
