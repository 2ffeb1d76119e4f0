"""A run's folder: one process at a time, one recipe for good, its results and where its seconds went."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import psutil
import yaml

from pipelines import checkpoint
from pipelines.door import SetupError
from pipelines.recipe import Recipe, RecipeError, computed_part, flatten, to_yaml
from pipelines.record import write_text


class Timeline:
    """Where the seconds of a run went before and between its stages: `name`, `began` after the process, `seconds`."""

    def __init__(self) -> None:
        self.start = psutil.Process().create_time()
        self.parts: list[dict[str, Any]] = [{"name": "imports", "began": 0.0, "seconds": time.time() - self.start}]

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure the body."""
        began = time.time()
        try:
            yield
        finally:
            self.parts.append({"name": name, "began": began - self.start, "seconds": time.time() - began})

    def write(self, folder: Path) -> None:
        write_text(folder / "timeline.json", json.dumps(self.parts, indent=1))


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run's folder for this process.

    Raises:
        SetupError: it cannot be written, or another process trains into it.
    """
    lock, fresh = filelock.FileLock(folder / ".lock", timeout=0), not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        raise SetupError(f"another process trains in {folder}; wait for it, or give this run its own name=…") from None
    except OSError as error:
        raise unwritable(folder, error) from None
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise unwritable(folder, error) from None
        raise  # a network's, or a file's that is missing: another place would not help
    finally:
        # of a run that was refused nothing stays
        if fresh and folder.is_dir() and [path.name for path in folder.iterdir()] == [".lock"]:
            shutil.rmtree(folder)
        lock.release()


def unwritable(folder: Path, error: OSError) -> SetupError:
    """What to say of a folder that cannot be written."""
    return SetupError(f"cannot write to {folder}: {error}. Give another place: output=DIR")


def settle(recipe: Recipe, folder: Path) -> None:
    """Make sure that the run in the folder, if there is one, computes the same as this recipe.

    Raises:
        RecipeError: the folder belongs to another recipe.
    """
    path = folder / "recipe.yaml"
    if not path.exists():
        return
    page = yaml.safe_load(path.read_text())
    own = computed_part(recipe)
    before, now = flatten({k: page.get(k) for k in own}), flatten(own)
    if differ := sorted(k for k in before | now if before.get(k) != now.get(k)):
        shown = ", ".join(f"{k}: {before.get(k)!r} -> {now.get(k)!r}" for k in differ[:5])
        raise RecipeError(f"the run {recipe.name} in {folder} has another recipe ({shown}). Choose name=OTHER.")


def check_views(folder: Path) -> None:
    """Make sure that a run that goes on saw the views which this version cuts.

    Raises:
        RecipeError: its checkpoints are of other views.
    """
    for checkpoints in sorted(folder.glob("*/checkpoints")):
        if found := checkpoint.newest(checkpoints, mapped=True):
            checkpoint.check_views(found, checkpoints)


def keep_recipe(recipe: Recipe, folder: Path) -> None:
    """Write the resolved recipe beside the run, once nothing stands against starting it."""
    path = folder / "recipe.yaml"
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        temporary.write_text(to_yaml(recipe))
        temporary.replace(path)


def finished(recipe: Recipe, folder: Path) -> list[dict[str, Any]]:
    """Results of all stages when all are done, else nothing."""
    files = [folder / stage.name / "done.json" for stage in recipe.stages]
    return [json.loads(file.read_text()) for file in files] if all(file.exists() for file in files) else []


def table(recipe: Recipe, results: list[dict[str, Any]]) -> str:
    """The results for people: rows, steps, mIoU before and after with its protocol, speed, checkpoint."""

    def percent(value: float | None) -> str:
        return "–" if value is None else f"{value * 100:.2f}"

    head = ["stage", "rows trained on", "steps", "val rows", "mIoU before", "mIoU after", "images/s", "checkpoint"]
    rows = [
        [r["stage"], str(r["rows"]), str(r["steps"]), str(r["val_rows"] or "–"), percent(r["miou_before"]),
         percent(r["miou"]), f"{r['images_per_s']:.1f}", r["checkpoint"]]
        for r in results
    ]  # fmt: skip
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    lines.append(
        f"mIoU in percent, of the stage's last weights on every val row, {results[0]['protocol']}, from one confusion "
        "matrix over the split; – where the stage has no rows that it may be scored on."
    )
    return "\n" + "\n".join(lines)
