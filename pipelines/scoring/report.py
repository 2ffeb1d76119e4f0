"""The scores of a checkpoint under one or several protocols, for people and as files."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.base import pictures
from pipelines.base.files import replacing, write_json
from pipelines.base.text import padded
from pipelines.runs.checkpoint import Checkpoint
from pipelines.scoring.counting import ImageCounts
from pipelines.scoring.evaluation import Task
from segmodels.metrics import Scores, scores

OVERALL = {
    "mIoU %": "miou", "pixel accuracy %": "accuracy", "mean accuracy %": "mean_accuracy", "fwIoU %": "fwiou",
    "mean F1 %": "mean_f1",
}  # fmt: skip
PER_CLASS = ("iou", "f1", "precision", "recall")


@dataclass(frozen=True)
class Scored:
    """A protocol: its name, its words, the counts of each image, and the scores that come of their sum."""

    name: str
    words: str
    counts: ImageCounts
    scores: Scores

    @classmethod
    def of(cls, name: str, task: Task, counts: ImageCounts) -> Scored:
        """The scores of a protocol of a task."""
        return cls(name, task.words(name), counts, scores(counts.total()))


def print_scores(classes: Sequence[str], scored: Sequence[Scored]) -> None:
    """Print IoU and F1 of each class, then what is said of all, with the protocols; every digit is in scores.json."""
    if len(scored) > 1:
        print(f"{'':>20}" + "".join(f"  {each.name:>14}" for each in scored))
    print(f"{'':>20}" + f"  {'IoU %':>6}  {'F1 %':>6}" * len(scored))
    for place, name in enumerate(classes):
        values = [value for each in scored for value in (each.scores.iou[place], each.scores.f1[place])]
        print(f"{name:>20}" + "".join(f"  {percent(value)}" for value in values))
    print()
    rows = [[each.name, *(f"{getattr(each.scores, key) * 100:.2f}" for key in OVERALL.values())] for each in scored]
    for line in padded([["protocol", *OVERALL], *rows], range(1, 1 + len(OVERALL))):
        print("  ".join(line))
    for each in scored:
        print(f"{each.name}: {each.words}")


def percent(value: float) -> str:
    """A score of a class, six characters wide."""
    return "absent" if value != value else f"{value * 100:6.2f}"


def write_scores(out: Path, task: Task, checkpoint: Checkpoint, scored: Sequence[Scored]) -> list[str]:
    """Write scores.json, scores.csv, and pictures of each protocol's matrix and IoU; returns their names.

    scores.json has the first protocol's scores at its top, and those of each below `protocols`; an absent class has
    null for its scores.
    """
    about = {
        "checkpoint": str(task.path), "shards": task.uri, "shards_hash": task.manifest.hash,
        "stage": checkpoint.stage, "step": checkpoint.step, "classes": list(checkpoint.classes),
    }  # fmt: skip
    pages = {each.name: page_of(each) for each in scored}
    write_json(out / "scores.json", next(iter(pages.values())) | about | {"protocols": pages})
    with replacing(out / "scores.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["protocol", "class", *PER_CLASS])
        writer.writerows(lines_of(checkpoint.classes, scored))
    return ["scores.json", "scores.csv", *draw(out, checkpoint.classes, scored)]


def page_of(scored: Scored) -> dict[str, Any]:
    """All that is known of a protocol's scores."""
    counts = scored.counts.total().tolist()
    return dataclasses.asdict(scored.scores) | {"protocol": scored.words, "confusion": counts}


def lines_of(classes: Sequence[str], scored: Sequence[Scored]) -> Iterator[list[str | float | None]]:
    """A line for each protocol and class, with fractions; nothing where a class is absent."""
    for each in scored:
        for place, name in enumerate(classes):
            values = [getattr(each.scores, key)[place] for key in PER_CLASS]
            yield [each.name, name, *(None if value != value else value for value in values)]


def draw(out: Path, classes: Sequence[str], scored: Sequence[Scored]) -> Iterator[str]:
    """Pictures of each protocol's confusion matrix and IoU; yields the files' names."""
    for each in scored:
        title = f"mIoU {each.scores.miou * 100:.2f} %\n{each.words}"
        figures = {
            "confusion": pictures.confusion_figure(each.counts.total(), classes, title),
            "iou": pictures.iou_figure(each.scores.iou, classes, title),
        }
        for kind, figure in figures.items():
            name = f"{kind}-{each.name}.png" if len(scored) > 1 else f"{kind}.png"
            with replacing(out / name) as temporary:
                figure.savefig(temporary, dpi=110)
            yield name
