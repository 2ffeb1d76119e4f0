"""Checkpoints: one file each, written whole or not at all, read without running code from it."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datasets.transforms import VIEWS
from pipelines.recipe import RecipeError
from segmodels.segmentor import classifier_keys

FORMAT = 1
log = logging.getLogger(__name__)


def save(path: Path, content: dict[str, Any]) -> None:
    """Write `content` (tensors, numbers, text, lists, dicts) under a temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            try:
                torch.save({"format": FORMAT, **content}, file)
            except RuntimeError as error:  # torch's archive writer hides what the file system said
                if "inline_container" not in str(error) and "PytorchStreamWriter" not in str(error):
                    raise
                raise OSError(errno.ENOSPC, f"cannot write the checkpoint ({first_line(error)})", str(path)) from error
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def load(path: Path, mapped: bool = False) -> dict[str, Any]:
    """Content of a checkpoint, tensors on the CPU.

    Args:
        path: the file.
        mapped: leave the tensors in the file until they are looked at.

    Raises:
        RecipeError: no such file, not a checkpoint of ours, cut off, or of another format.
    """
    if not path.is_file():
        raise RecipeError(f"no checkpoint {path}; a run's lie in RUN/STAGE/checkpoints and RUN/STAGE/best.pt")
    try:
        if not zipfile.is_zipfile(path):  # torch.save writes one, its directory last: this finds the cut-off file
            raise zipfile.BadZipFile("not a whole archive")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise RecipeError(f"{path} is no readable checkpoint (cut off, or not of this project): {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise RecipeError(f"{path} has checkpoint format {found}, this version reads {FORMAT}")
    return content


def step_file(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:08d}.pt"


def newest(folder: Path, mapped: bool = False) -> dict[str, Any] | None:
    """Content of the newest readable checkpoint of a stage; an unreadable one is passed over with a warning."""
    for path in sorted(folder.glob("step-*.pt"), reverse=True):
        try:
            return load(path, mapped)
        except RecipeError as error:
            log.warning("%s; falling back to the checkpoint before it", error)
    return None


def check_views(found: dict[str, Any], path: Path) -> None:
    """Refuse to train on from what was trained on other views.

    Raises:
        RecipeError: the run was begun by a version that cuts other views from the same seeds.
    """
    if found.get("views", 1) != VIEWS:  # 0.3.1 and before noted none
        raise RecipeError(
            f"{path}: trained by a version that cuts other views from the same seeds, so its run cannot go on here. "
            "Finish it with that version, or train anew under another name (name=OTHER; a study, --name OTHER)."
        )


def prune(folder: Path, keep: int, step: int) -> None:
    """Keep the `keep` step files up to that of `step`, just written, and clear what killed writers left.

    One of a later step can only be one that was passed over as unreadable.
    """
    paths, last = sorted(folder.glob("step-*.pt")), step_file(folder, step)
    good = [path for path in paths if path <= last]
    for path in [*good[:-keep], *paths[len(good) :]]:
        path.unlink(missing_ok=True)
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def initialise(model: nn.Module, weights: dict[str, Tensor], same_classes: bool) -> list[str]:
    """Load the weights of the stage before; a classifier of other classes keeps its fresh values.

    Args:
        model: a Segmentor with fresh classifiers.
        weights: its state dict from the stage before.
        same_classes: whether both stages name the same classes in the same order.

    Returns:
        The names of the parameters that were left fresh.

    Raises:
        RecipeError: the weights are of another model.
    """
    fresh = [] if same_classes else classifier_keys(model)
    taken = {name: value for name, value in weights.items() if name not in fresh}
    own = model.state_dict()
    odd = sorted((set(own) - set(fresh)) ^ set(taken))
    odd += [n for n in taken if n in own and own[n].shape != taken[n].shape]
    if odd:
        raise RecipeError(
            f"the weights are of another model: {len(odd)} names or shapes differ, first {odd[:5]}. "
            "Backbone, head and aux must be those of the run that wrote them."
        )
    model.load_state_dict(taken, strict=False)
    return fresh
