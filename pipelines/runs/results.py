"""Notes on a stage before, during and after its training; and the results of a run as a table."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from pipelines.base.files import write_json
from pipelines.base.text import padded
from pipelines.recipes.recipe import Recipe
from pipelines.runs.folder import RunFolder, StageFolder

TESTED = {
    "mIoU": "miou", "low": "miou_low", "high": "miou_high", "pixel accuracy": "accuracy",
    "mean accuracy": "mean_accuracy", "fwIoU": "fwiou", "mean F1": "mean_f1",
}  # fmt: skip


class Noted:
    """A frozen dataclass that is kept as JSON; fields that this version does not know are ignored."""

    def write(self, path: Path) -> None:
        """Write it; afterwards the file is whole, or as it was."""
        write_json(path, asdict(self))  # type: ignore[call-overload]  # of a dataclass

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read it."""
        return cls.parse(path.read_text())

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """What JSON says."""
        page = json.loads(text)
        return cls(**{f.name: page[f.name] for f in fields(cls) if f.name in page})  # type: ignore[arg-type]  # likewise


@dataclass(frozen=True)
class About(Noted):
    """What is known of a stage before it starts: MLflow's `params` and `tags`, class names, protocol, steps.

    `shards` are facts of the splits that `train` and `val` name, as `shard_facts` gives them; up to 0.4.0 there are
    none. `costs` are metrics of its model; likewise.
    """

    params: Mapping[str, Any]
    tags: Mapping[str, str]
    classes: Sequence[str]
    protocol: str
    steps: int
    shards: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome(Noted):
    """What the workers return of a stage: the last step, mIoU before, after and at its best, images/s."""

    step: int
    before: float | None
    after: float | None
    best: float
    best_step: int
    images_per_s: float


@dataclass(frozen=True)
class Result(Noted):
    """The result of a stage: rows, steps, mIoU (0 to 1) with its protocol, speed, checkpoints; `time` in ms.

    Of another task than segmentation `miou_before`, `miou`, `best` and `iou` are its own score, which `metric` names,
    and `named` has all its numbers: the keys are older than those tasks.

    `iou` are those of the classes that `miou` is the mean of, None for one that is absent, and `accuracy` is the share
    of pixels that are right; results of older versions have none of them. `tests` are what the best weights score
    under the recipe's protocols, by name: `protocol` in words, `rows`, all of `Scores`, and the file with the counts
    of each row.
    """

    stage: str
    rows: int
    steps: int
    val_rows: int | None
    miou_before: float | None
    miou: float | None
    best: float | None
    best_step: int | None
    images_per_s: float
    checkpoint: str
    best_checkpoint: str | None
    protocol: str
    time: int
    classes: Sequence[str] = ()
    iou: Sequence[float | None] = ()
    accuracy: float | None = None
    tests: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    metric: str = "mIoU"
    named: Mapping[str, float] = field(default_factory=dict)


def finished(recipe: Recipe, folder: Path) -> list[Result]:
    """Results of all stages when all are done, else nothing."""
    files = [RunFolder(folder).stage(stage.name).result for stage in recipe.stages]
    return [Result.read(file) for file in files] if all(file.exists() for file in files) else []


def table(results: Sequence[Result]) -> str:
    """The results for people: rows, steps, mIoU before and after with its protocol, speed, checkpoint; then classes."""
    metric = results[0].metric
    head = ["stage", "rows trained on", "steps", "val rows", f"{metric} before", f"{metric} after", "images/s",
            "checkpoint"]  # fmt: skip
    rows = [
        [r.stage, str(r.rows), str(r.steps), str(r.val_rows or "–"), percent(r.miou_before), percent(r.miou),
         f"{r.images_per_s:.1f}", r.checkpoint]
        for r in results
    ]  # fmt: skip
    whole = ", from one confusion matrix over the split" if metric == Result.metric else ""
    note = (
        f"{metric} in percent, of the stage's last weights on every val row, {results[0].protocol}{whole}; – where the "
        "stage has no rows that it may be scored on."
    )
    classes = class_tables(results) if metric == Result.metric else task_tables(results)
    return "\n".join(["", *lined(head, rows), note, *test_table(results), *classes])


def task_tables(results: Sequence[Result]) -> Iterator[str]:
    """All numbers of another task, and its score of each class, with a column for each stage that was scored."""
    scored = [r for r in results if r.named]
    if not scored:
        return
    stages, right = [r.stage for r in scored], range(1, 1 + len(scored))
    yield ""
    yield from lined(
        ["score", *stages], [[k, *(percent(r.named.get(k)) for r in scored)] for k in scored[0].named], right
    )
    yield "In percent."
    yield ""
    rows = [[name, *map(percent, v)] for name, *v in zip(scored[0].classes, *(r.iou for r in scored), strict=True)]
    shown = [row for row in rows if set(row[1:]) != {percent(None)}]
    yield from lined(["class", *stages], shown, right)
    gone = f"; not shown: {len(rows) - len(shown)} classes of which there is none" if len(shown) < len(rows) else ""
    yield f"{scored[0].metric} of each class in percent{gone}."


def test_table(results: Sequence[Result]) -> Iterator[str]:
    """What the best weights of each stage score under the recipe's protocols; nothing where it names none."""
    rows = [
        [result.stage, name, *(percent(scores.get(key)) for key in TESTED.values())]
        for result in results
        for name, scores in result.tests.items()
    ]
    if not rows:
        return
    yield ""
    yield from lined(["stage", "protocol", *TESTED], rows, range(2, 2 + len(TESTED)))
    yield "In percent, of the stage's best weights on every val row; low, high: 95 % interval of mIoU over images:"
    for name, words in {(n, s["protocol"]): None for r in results for n, s in r.tests.items()}:
        yield f"  {name}: {words}"


def lined(head: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Lines of a table, its head underlined.

    Args:
        right: columns that are flush right.
    """
    shown = padded([head, *rows], right)
    lines = ["  ".join(cells).rstrip() for cells in shown]
    return [lines[0], "  ".join("-" * len(cell) for cell in shown[0]), *lines[1:]]


def class_tables(results: Sequence[Result]) -> Iterator[str]:
    """IoU and F1 of each class: a table for each list of classes, with columns for each stage that was scored on it."""
    for classes in dict.fromkeys(tuple(r.classes) for r in results if r.iou):
        scored = [r for r in results if r.iou and tuple(r.classes) == classes]
        heads = [f"{r.stage} {score}" for r in scored for score in ("IoU", "F1")]
        columns = [column for r in scored for column in (list(r.iou), f1_of(r.iou))]
        rows = [[name, *map(percent, values)] for name, *values in zip(classes, *columns, strict=True)]
        mean = ["mean", *(percent(mean_of(column)) for column in columns)]
        yield ""
        yield from lined(["class", *heads], [*rows, mean], range(1, 1 + len(columns)))
        yield "IoU and F1 (Dice) in percent; – for a class that is in neither truth nor prediction."


def score_of(line: Mapping[str, Any]) -> str:
    """The name of the score that a record's line of a validation has as `miou`."""
    return str(line.get("metric", Result.metric))


def score_of_class(metric: str) -> str:
    """What a class has of a score: its IoU of a mean IoU, its own part of others."""
    return "IoU" if metric == Result.metric else metric


def percent(value: float | None) -> str:
    """A share in percent; a dash where there is none."""
    return "–" if value is None or value != value else f"{value * 100:.2f}"


def f1_of(iou: Sequence[float | None]) -> list[float | None]:
    """F1 (Dice) of classes from their IoU: with the same pixels counted, F1 = 2 IoU / (1 + IoU)."""
    return [None if value is None or value != value else 2 * value / (1 + value) for value in iou]


def mean_of(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are there."""
    known = [value for value in values if value is not None and value == value]
    return sum(known) / len(known) if known else None


def final_weights(stage: StageFolder) -> Path:
    """The best checkpoint of a finished stage, or its last where it has no scores; in its folder, wherever that is."""
    return stage.path / final_name(Result.read(stage.result))


def final_name(done: Result) -> Path:
    """The same from the stage's folder on."""
    stage = StageFolder(Path())
    return stage.best if done.best_checkpoint else stage.checkpoints / Path(done.checkpoint.partition("?")[0]).name
