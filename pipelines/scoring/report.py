"""The scores of a checkpoint under one or several protocols, for people and as files."""

from __future__ import annotations

import csv
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
from pipelines.scoring.judged import Judged

OVERALL = {
    "mIoU %": "miou", "pixel accuracy %": "accuracy", "mean accuracy %": "mean_accuracy", "fwIoU %": "fwiou",
    "mean F1 %": "mean_f1",
}  # fmt: skip
PER_CLASS = ("iou", "iou_low", "iou_high", "f1", "precision", "recall")
SURE = "low, high: 95 % interval, bootstrap over images (BCa, 1000 draws); images: those whose truth has the class."


@dataclass(frozen=True)
class Scored:
    """A protocol: its name, its words, the counts of each image, and what is said of them."""

    name: str
    words: str
    counts: ImageCounts
    judged: Judged

    @classmethod
    def of(cls, name: str, task: Task, counts: ImageCounts) -> Scored:
        """The scores of a protocol of a task."""
        return cls(name, task.words(name), counts, Judged.of(counts, task.manifest.rows, task.manifest.classes))


def print_scores(classes: Sequence[str], scored: Sequence[Scored]) -> None:
    """Print IoU with its interval and F1 of each class, then what is said of all, with the protocols, then measures."""
    if len(scored) > 1:
        print(f"{'':>20}" + "".join(f"  {each.name:>30}" for each in scored))
    print(f"{'':>20}" + f"  {'IoU %':>6}  {'low':>6}  {'high':>6}  {'F1 %':>6}" * len(scored) + "  images")
    for place, name in enumerate(classes):
        cells = [cell for each in scored for cell in class_cells(each.judged, place)]
        print(f"{name:>20}" + "".join(f"  {cell:>6}" for cell in cells) + f"  {images_of(scored)[place]:>6}")
    print()
    rows = [[each.name, *overall(each.judged)] for each in scored]
    for line in padded([["protocol", "mIoU %", "low", "high", *list(OVERALL)[1:]], *rows], range(1, 3 + len(OVERALL))):
        print("  ".join(line))
    for each in scored:
        print(f"{each.name}: {each.words}")
    print(SURE)
    for each in scored:
        for reading in each.judged.readings.values():
            print("\n".join(["", f"{each.name}: {each.words}", *reading.lines]))


def class_cells(judged: Judged, place: int) -> list[str]:
    """IoU, low, high and F1 of a class."""
    sure = judged.sure.iou[place]
    values = [judged.scores.iou[place], sure.low, sure.high, judged.scores.f1[place]]
    return ["absent", "", "", "absent"] if values[0] != values[0] else [percent(value) for value in values]


def images_of(scored: Sequence[Scored]) -> list[int]:
    """How many images hold each class: the same under every protocol."""
    return scored[0].judged.sure.images


def overall(judged: Judged) -> list[str]:
    """mIoU, low, high, and the other scores of all classes together."""
    first, *others = (getattr(judged.scores, key) for key in OVERALL.values())
    return [f"{value * 100:.2f}" for value in (first, judged.sure.miou.low, judged.sure.miou.high, *others)]


def percent(value: float) -> str:
    """A score of a class, six characters wide."""
    return f"{value * 100:6.2f}"


def write_scores(out: Path, task: Task, checkpoint: Checkpoint, scored: Sequence[Scored]) -> list[str]:
    """Write scores.json, scores.csv, and pictures of each protocol's matrix, IoU and measures; returns their names.

    scores.json has the first protocol's scores at its top, and those of each below `protocols`; an absent class has
    null for its scores.
    """
    about = {
        "checkpoint": task.shown, "shards": task.uri, "shards_hash": task.manifest.hash,
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
    about = {"protocol": scored.words, "confusion": scored.counts.total().tolist()}
    return scored.judged.numbers() | about | scored.judged.pages()


def lines_of(classes: Sequence[str], scored: Sequence[Scored]) -> Iterator[list[str | float | None]]:
    """A line for each protocol and class, with fractions; nothing where a class is absent."""
    for each in scored:
        numbers = each.judged.numbers()
        for place, name in enumerate(classes):
            values = [numbers[key][place] for key in PER_CLASS]
            yield [each.name, name, *(None if value != value else value for value in values)]


def draw(out: Path, classes: Sequence[str], scored: Sequence[Scored]) -> Iterator[str]:
    """Pictures of each protocol's confusion matrix and IoU; yields the files' names."""
    for each in scored:
        scores, ending = each.judged.scores, f"-{each.name}" if len(scored) > 1 else ""
        low, high = (f"{end * 100:.2f}" for end in (each.judged.sure.miou.low, each.judged.sure.miou.high))
        title = f"mIoU {scores.miou * 100:.2f} % [{low}, {high}]\n{each.words}"
        figures = {
            "confusion": pictures.confusion_figure(each.counts.total(), classes, title),
            "iou": pictures.iou_figure(scores.iou, classes, title, *each.judged.spans()),
        }
        for kind, figure in figures.items():
            name = f"{kind}{ending}.png"
            with replacing(out / name) as temporary:
                figure.savefig(temporary, dpi=110)
            yield name
        yield from (path.name for path in each.judged.draw(out, ending, each.words))
