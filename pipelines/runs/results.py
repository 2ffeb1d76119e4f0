"""What is noted of a stage before, at and after its training; and the results of a run as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from pipelines.base.files import write_json
from pipelines.base.text import padded
from pipelines.recipes.recipe import Recipe
from pipelines.runs.folder import RunFolder, StageFolder


class Noted:
    """A frozen dataclass that is kept as JSON; fields that a version does not know are passed over."""

    def write(self, path: Path) -> None:
        """Write it; afterwards the file is whole, or as it was."""
        write_json(path, asdict(self))  # type: ignore[call-overload]  # of a dataclass

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read it."""
        page = json.loads(path.read_text())
        return cls(**{f.name: page[f.name] for f in fields(cls) if f.name in page})  # type: ignore[arg-type]  # likewise


@dataclass(frozen=True)
class About(Noted):
    """What is known of a stage before it starts: MLflow's `params` and `tags`, class names, protocol, steps."""

    params: Mapping[str, Any]
    tags: Mapping[str, str]
    classes: Sequence[str]
    protocol: str
    steps: int


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
    """What came of a stage: rows, steps, mIoU (0 to 1) with its protocol, speed, checkpoints; `time` in ms."""

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


def finished(recipe: Recipe, folder: Path) -> list[Result]:
    """Results of all stages when all are done, else nothing."""
    files = [RunFolder(folder).stage(stage.name).result for stage in recipe.stages]
    return [Result.read(file) for file in files] if all(file.exists() for file in files) else []


def table(results: Sequence[Result]) -> str:
    """The results for people: rows, steps, mIoU before and after with its protocol, speed, checkpoint."""

    def percent(value: float | None) -> str:
        return "–" if value is None else f"{value * 100:.2f}"

    head = ["stage", "rows trained on", "steps", "val rows", "mIoU before", "mIoU after", "images/s", "checkpoint"]
    rows = [
        [r.stage, str(r.rows), str(r.steps), str(r.val_rows or "–"), percent(r.miou_before), percent(r.miou),
         f"{r.images_per_s:.1f}", r.checkpoint]
        for r in results
    ]  # fmt: skip
    shown = padded([head, *rows])
    lines = ["  ".join(cells).rstrip() for cells in shown]
    lines.insert(1, "  ".join("-" * len(cell) for cell in shown[0]))
    lines.append(
        f"mIoU in percent, of the stage's last weights on every val row, {results[0].protocol}, from one confusion "
        "matrix over the split; – where the stage has no rows that it may be scored on."
    )
    return "\n" + "\n".join(lines)


def final_weights(stage: StageFolder) -> Path:
    """The best checkpoint of a finished stage, or its last where it has no scores; in its folder, wherever that is."""
    done = Result.read(stage.result)
    return stage.best if done.best_checkpoint else stage.checkpoints / Path(done.checkpoint).name
