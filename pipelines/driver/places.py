"""Where a run writes, how much, and whether there is room for it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import filelock

from datasets.shards import default_cache
from datasets.storage import locate
from pipelines.base.errors import SetupError
from pipelines.cluster.sizes import joins
from pipelines.driver.planned import PlannedStage
from pipelines.recipes.model import meta_model
from pipelines.recipes.recipe import Recipe
from pipelines.runs.folder import CHECKPOINTS, RunFolder
from pipelines.runs.mlflow_client import default_uri
from pipelines.runs.run import unwritable
from pipelines.runs.where import address_of, is_bucket
from segmodels.optim import STATES

GIB = 2**30


def places(recipe: Recipe, output: Path, planned: Sequence[PlannedStage]) -> list[list[str]]:
    """Rows for people: what is written, where, and how many bytes where that is known."""
    weights = recipe.weights or recipe.backbone.weights or ""
    copied = sum(file["bytes"] for plan in planned for split in (plan.train, plan.val) if split for file in split.files)
    rows = [
        ["checkpoints, record, pictures, results", address_of(recipe), told(checkpoint_bytes(recipe, planned))],
        ["numbers and pictures", recipe.tracking or default_uri(output), "grows with the record"],
        ["copies of shards, once per machine", str(default_cache().absolute()), told(copied)],
    ]
    if recipe.data == Recipe.data:
        rows.append(["the bundled sample", str(output / "sample"), told(copied)])
    if "://" in weights:
        rows.append(["weights to start from", str(output / "weights"), "as the file"])
    if not (recipe.workers.count == 0 and recipe.feed == "torch"):
        rows.append(["Ray's logs and blocks", place_of_ray(), "while it runs"])
    return rows


def place_of_ray() -> str:
    """Where Ray keeps its own files; a local session's folder is made when it starts."""
    if joins():
        return "the nodes' own"
    return os.environ.get("RAY_TMPDIR") or f"a folder of this user's in {tempfile.gettempdir()}"


def told(count: float) -> str:
    """Bytes in words."""
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"


def checkpoint_bytes(recipe: Recipe, planned: Sequence[PlannedStage]) -> int:
    """What all checkpoints come to: the last ones with the optimizer's state, the best without, the model for use."""
    total = weights = 0
    for plan in planned:
        model = meta_model(recipe, len(plan.train.classes))
        weights = sum(tensor.nbytes for tensor in model.state_dict().values())
        kept = STATES[recipe.optim.name] * sum(p.nbytes for p in model.parameters())
        whole = weights * (2 if recipe.optim.ema else 1) + kept
        total += recipe.keep_last * whole + (weights if plan.val else 0)
    last = planned[-1] if planned else None
    return total + (2 * weights if last and last.val and recipe.mlflow_model else 0)


def check_places(recipe: Recipe, output: Path, folder: Path, planned: Sequence[PlannedStage]) -> None:
    """Make sure that a run can write what it will, and that nobody else writes there; nothing is made.

    Raises:
        SetupError: the folder cannot be written, another process holds it, or the disk has no room.
        DataError: no bucket answers.
    """
    if is_bucket(recipe.output):
        locate(recipe.output)
        return
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(there, os.W_OK):
        raise unwritable(folder, PermissionError(13, "Permission denied", str(there)))
    if (note := RunFolder(folder).lock).exists():
        try:
            filelock.FileLock(note, timeout=0).acquire().lock.release()
        except filelock.Timeout:
            raise SetupError(
                f"another process trains in {folder}; wait for it, or give this run its own name=…"
            ) from None
    check_room(recipe, folder, planned)


def check_room(recipe: Recipe, folder: Path, planned: Sequence[PlannedStage]) -> None:
    """Make sure that the disk has room for the checkpoints that are not there yet.

    Raises:
        SetupError: it has not.
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    kept = [path for stage in RunFolder(folder).stages() for path in stage.checkpoints.glob(CHECKPOINTS)]
    written = sum(path.stat().st_size for path in kept)
    needed, free = max(0, checkpoint_bytes(recipe, planned) - written), shutil.disk_usage(there).free
    if free < needed:
        raise SetupError(
            f"{folder}: its disk has {told(free)} free, and the checkpoints of {len(planned)} stage(s) take "
            f"{told(needed)}. Make room, keep fewer (keep_last), or give another place: output=DIR"
        )
