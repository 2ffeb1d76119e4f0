"""A run's life in its folder: one process at a time, one recipe for good, and where its seconds go."""

from __future__ import annotations

import contextlib
import errno
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock
import psutil
import yaml

from pipelines.base.errors import InputError, SetupError
from pipelines.base.files import write_json, write_text
from pipelines.recipes.recipe import LATER, Recipe, computed_part, counts_of, flatten, norm_batch, to_yaml
from pipelines.runs import checkpoint
from pipelines.runs.checkpoint import Numerics
from pipelines.runs.folder import RunFolder


@dataclass(frozen=True)
class Span:
    """A part of a run: `began` and `seconds`, in seconds after the process started."""

    name: str
    began: float
    seconds: float


class Timeline:
    """Where the seconds of a run go before and between its stages."""

    def __init__(self) -> None:
        self.start = psutil.Process().create_time()
        self.parts = [Span("imports", 0.0, time.time() - self.start)]

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure the body."""
        began = time.time()
        try:
            yield
        finally:
            self.parts.append(Span(name, began - self.start, time.time() - began))

    def write(self, folder: Path) -> None:
        """Keep it in the run's folder."""
        write_json(RunFolder(folder).timeline, [asdict(part) for part in self.parts])


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run's folder for this process.

    Raises:
        SetupError: it cannot be written, or another process trains into it.
    """
    note, fresh = RunFolder(folder).lock, not folder.exists()
    lock = filelock.FileLock(note, timeout=0)
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
        # a run that was refused leaves nothing
        if fresh and folder.is_dir() and [path.name for path in folder.iterdir()] == [note.name]:
            shutil.rmtree(folder)
        lock.release()


def unwritable(folder: Path, error: OSError) -> SetupError:
    """What to say of a folder that cannot be written."""
    return SetupError(f"cannot write to {folder}: {error}. Give another place: output=DIR")


def settle(recipe: Recipe, folder: Path) -> None:
    """Make sure that the run in the folder, if there is one, computes the same as this recipe.

    Raises:
        InputError: the folder belongs to another recipe.
    """
    path = RunFolder(folder).recipe
    if not path.exists():
        return
    page = yaml.safe_load(path.read_text())
    own = computed_part(recipe)
    page.setdefault("norm", recipe.norm)  # up to 0.5 there was no such key; what norms saw is in the checkpoints
    page["optim"] = LATER | (page.get("optim") or {})  # up to 0.6 there were none of these
    before, now = flatten({k: page.get(k) for k in own}), flatten(own)
    if differ := sorted(k for k in before | now if before.get(k) != now.get(k)):
        shown = ", ".join(f"{k}: {before.get(k)!r} -> {now.get(k)!r}" for k in differ[:5])
        raise InputError(f"the run {recipe.name} in {folder} has another recipe ({shown}). Choose name=OTHER.")
    for stage in RunFolder(folder).stages():
        if found := checkpoint.newest(stage.checkpoints, mapped=True):
            check_wishes(recipe, checkpoint.numerics_of(found), page.get("workers") or {}, stage.checkpoints)


def check_wishes(recipe: Recipe, found: Numerics | None, before: Mapping[str, Any], path: Path) -> None:
    """Refuse numerics that a recipe asks for by name where the run has others; what it leaves open is settled later.

    Args:
        found: of the run; None up to 0.3.5.
        before: the keys of the run's own workers.
        path: of its checkpoints.

    Raises:
        InputError: the precision, how gradients travel, or how many images a norm sees at once, is another.
    """
    wish = recipe.workers
    if found is None:
        kept = before.get("precision", "auto")
        if "auto" not in (kept, wish.precision) and kept != wish.precision:
            raise InputError(f"{path}: this run computes in {kept}, not in {wish.precision}. Choose name=OTHER.")
        return
    world = world_of(recipe, found.world)
    now = Numerics(
        found.precision if wish.precision == "auto" else wish.precision,
        norm_batch(recipe, world) if found.per_norm and recipe.batch % world == 0 else found.per_norm,
        world,
        recipe.norm == "sync" and world > 1,
        wish.compress,
    )
    checkpoint.check_numerics(found, now, path)


def world_of(recipe: Recipe, before: int) -> int:
    """The workers that a recipe asks for by name; else those of before. The numbers of a range see the same images."""
    counts = counts_of(recipe)
    if counts:
        return before if before in counts else counts[0]
    return before if recipe.workers.number is None else max(1, recipe.workers.number)


def check_views(folder: Path) -> None:
    """Make sure that a run that goes on saw the views which this version cuts.

    Raises:
        InputError: its checkpoints are of other views.
    """
    for stage in RunFolder(folder).stages():
        if found := checkpoint.newest(stage.checkpoints, mapped=True):
            rotate = found.get("recipe", {}).get("view", {}).get("rotate", 0.0)
            checkpoint.check_views(found.get("views", 1), rotate, stage.checkpoints)


def keep_recipe(recipe: Recipe, folder: Path) -> None:
    """Write the resolved recipe into the run's folder, once all checks have passed."""
    path = RunFolder(folder).recipe
    if not path.exists():
        write_text(path, to_yaml(recipe))
