"""Where the seconds of a finished chain went, read from what it left behind."""

from __future__ import annotations

import json
from pathlib import Path

from datasets.manifest import MANIFEST
from pipelines.runs.folder import RunFolder, StageFolder
from pipelines.runs.record import read_record
from pipelines.runs.run import Span

SHARDS = ("coco_voc/train", "coco_voc/val", "voc12_aug/train", "voc12/train", "voc12/val", "voc12/trainval")


def account(output: Path, began: float, ended: float, imported: float) -> list[Span]:
    """Where the seconds between `began` and `ended` (of the clock) went, in order, the whole chain last.

    Args:
        output: what the chain wrote.
        began, ended: times of the command, seconds of the epoch.
        imported: seconds that its imports take by themselves.
    """
    run = next(RunFolder(path) for path in sorted((output / "runs").iterdir()) if RunFolder(path).recipe.exists())
    fits = sorted(int(path.name.removeprefix("fit-")) / 1e9 for path in run.ray.glob("fit-*"))
    drawn, kept = changed(output / "sample/release/sample.json"), changed(run.recipe)
    sharded = [changed(output / "sample/shards" / split / MANIFEST) for split in SHARDS]
    released = (output / "sample/release").stat()
    ray_up = getattr(released, "st_birthtime", None) or oldest(output / "sample/release", drawn)
    marks: list[tuple[str, float]] = [("imports of the door (measured apart)", began + imported)]
    marks += [("checks, Ray's start", ray_up), ("drawing the sample", drawn), ("sharding it", max(sharded))]
    marks += [("checks of the shards", kept), ("tracking opened, jobs made", fits[0])]
    for place in stages(run):
        marks += stage_marks(place, batch_of(run))
    marks.append(("end: last upload, table, Ray's end", ended))
    spans, last = [], began
    for name, at in marks:
        spans.append(Span(name, last - began, at - last))
        last = at
    return [*spans, *timeline(run), Span("the whole chain", 0.0, ended - began)]


def changed(path: Path) -> float:
    """When a file was last written, seconds of the epoch."""
    return path.stat().st_mtime


def oldest(folder: Path, latest: float) -> float:
    """When the first file of a folder was written: as near to its making as a file system without birth times tells."""
    return min((changed(path) for path in folder.rglob("*") if path.is_file()), default=latest)


def stages(run: RunFolder) -> list[StageFolder]:
    """The run's stages in the order in which they were trained."""
    return sorted(run.stages(), key=lambda stage: read_record(stage.record)[0][0]["time"])


def batch_of(run: RunFolder) -> int:
    """Global batch of the run."""
    from pipelines.recipes.reading import load_recipe

    return load_recipe(run.recipe).batch


def stage_marks(place: StageFolder, batch: int) -> list[tuple[str, float]]:
    """What a stage's record tells, each with the time at which it ended.

    A `train` line tells its steps' seconds by their rate. The first one comes later than that: the rest was the wait
    for the first batch, which the rate leaves out.
    """
    lines, step, marks, first = read_record(place.record)[0], 0, [], True
    for line in lines:
        at = line["time"] / 1000
        if line["kind"] == "note":
            marks.append((f"{place.path.name}: workers, model, to the first line", at))
        elif line["kind"] == "val":
            marks.append((f"{place.path.name}: validation at step {line['step']}", at))
        elif line["kind"] == "train":
            if first:
                marks.append(
                    (f"{place.path.name}: to the first batch", at - line["step"] * batch / line["images_per_s"])
                )
            first, step = False, line["step"]
            marks.append((f"{place.path.name}: training", at))
    marks.append((f"{place.path.name}: checkpoint of step {step}, outcome", changed(place.outcome)))
    return joined(marks)


def joined(marks: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Neighbours of one name as one."""
    kept: list[tuple[str, float]] = []
    for name, at in marks:
        if kept and kept[-1][0] == name:
            kept.pop()
        kept.append((name, at))
    return kept


def timeline(run: RunFolder) -> list[Span]:
    """The run's own timeline: parts of the driver's time, which overlap with what the records tell."""
    entries = json.loads(run.timeline.read_text()) if run.timeline.exists() else []
    return [Span(f"driver: {entry['name']}", float(entry["began"]), float(entry["seconds"])) for entry in entries]
