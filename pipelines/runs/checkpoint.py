"""Checkpoints: one file each, written whole or not at all, read without running code from it."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from datasets.transforms import VIEWS, views_version
from pipelines.base.errors import InputError
from pipelines.base.files import TEMPORARY, replacing
from pipelines.recipes.reading import convert
from pipelines.recipes.recipe import Recipe, to_page
from pipelines.runs.folder import CHECKPOINTS, step_name
from segmodels import files
from segmodels.files import FileError
from segmodels.segmentor import classifier_keys

DRAWS = 2  # version of what else is drawn from a recipe's seed: dropout's masks; 1 up to 0.3.5
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far a stage is, and what it must remember over a resume.

    `before`, `after` and `best` are mIoU: before the first step, at the last validation, at `best_step` (-1: none).
    `seconds` and `images` are of the training so far, without validation. `losses` are those of the steps that are not
    in the record yet; `terms` are the same for each term of the objective.
    """

    step: int = 0
    before: float | None = None
    after: float | None = None
    best: float = -1.0
    best_step: int = -1
    seconds: float = 0.0
    images: int = 0
    losses: tuple[float, ...] = ()
    terms: tuple[tuple[float, ...], ...] = ()

    def to(self, step: int) -> Self:
        """The same at another step."""
        return replace(self, step=step)

    def scored(self, step: int, miou: float) -> Self:
        """The same after a validation."""
        noted = replace(self, after=miou, before=miou if step == 0 else self.before)
        return replace(noted, best=miou, best_step=step) if miou > self.best else noted


@dataclass(frozen=True)
class Numerics:
    """How a run computes, where that changes its numbers by more than rounding.

    `precision`: `bf16`, `fp16` or `fp32`. `per_norm`: images that a batch norm sees at once, 0 where norms are frozen.
    `world`: workers; `synchronised`: whether norms see the images of all of them. `compress`: how gradients travel
    where there are several, None for as they are.
    """

    precision: str
    per_norm: int
    world: int
    synchronised: bool
    compress: str | None = None

    def misfits(self, other: Self) -> list[str]:
        """What of another's numbers are not these, as KEY: THEIRS -> OURS."""
        pairs = {
            "precision": (other.precision, self.precision),
            "images that a batch norm sees at once": (other.per_norm, self.per_norm),
            "compression of gradients": (other.compress, self.compress),
        }
        return [f"{name}: {before} -> {now}" for name, (before, now) in pairs.items() if before != now]


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: enough to use the weights and to know where they come from.

    `model` is the model's state dict, of the averaged weights where the recipe asks for these; `seen` a digest of each
    row that was trained on; `numerics` are missing up to 0.3.5, `flip_pairs`, the classes that change places in a
    mirrored image, up to 0.4. What only a resume needs is missing from `best.pt`:
    `optimizer`, `trained`, the weights that `model` averages, and `scaling`, of the loss in fp16.
    """

    model: Mapping[str, Tensor]
    recipe: Recipe
    stage: str
    step: int
    progress: Progress
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    seen: np.ndarray
    flip_pairs: tuple[tuple[int, int], ...] | None = None
    views: int = VIEWS
    draws: int = DRAWS
    numerics: Numerics | None = None
    optimizer: Mapping[str, Any] | None = None
    trained: Mapping[str, Tensor] | None = None
    scaling: Mapping[str, Any] | None = None

    def write(self, path: Path) -> None:
        """Write it; afterwards the file is whole, or as it was.

        Raises:
            OSError: the disk is full.
        """
        content = {f.name: getattr(self, f.name) for f in fields(self)}
        del content["progress"]
        plain = {
            "recipe": to_page(self.recipe),
            "state": asdict(self.progress),
            "classes": list(self.classes),
            "palette": [list(colour) for colour in self.palette],
            "flip_pairs": None if self.flip_pairs is None else [list(pair) for pair in self.flip_pairs],
            "seen": torch.from_numpy(self.seen),
            "numerics": asdict(self.numerics) if self.numerics else None,
        }
        save(path, {name: value for name, value in (content | plain).items() if value is not None})

    @classmethod
    def read(cls, path: Path, mapped: bool = False) -> Self:
        """Read it.

        Args:
            path: the file.
            mapped: leave the tensors in the file until they are looked at.

        Raises:
            InputError: as `load`, its recipe is one that this version cannot read, or it is a file for use.
        """
        content = load(path, mapped)
        if "seen" not in content:
            raise InputError(
                f"{path} is a file for use, which does not know what it was trained on; give the run's own best.pt"
            )
        return cls.of(content)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """The checkpoint of what `load` gives."""
        state = {f.name: content["state"][f.name] for f in fields(Progress) if f.name in content["state"]}
        return cls(
            model=content["model"],
            recipe=convert(Recipe, content["recipe"], ""),
            stage=content["stage"],
            step=content["step"],
            progress=Progress(**state | {k: tuple(state[k]) for k in ("losses", "terms") if k in state}),
            classes=tuple(content["classes"]),
            palette=tuple((r, g, b) for r, g, b in content["palette"]),
            seen=content["seen"].numpy(),
            flip_pairs=tuple((a, b) for a, b in content["flip_pairs"]) if "flip_pairs" in content else None,
            views=content.get("views", 1),  # 0.3.1 and before noted none
            draws=content.get("draws", 1),
            numerics=numerics_of(content),
            optimizer=content.get("optimizer"),
            trained=content.get("trained"),
            scaling=content.get("scaling"),
        )


def numerics_of(content: Mapping[str, Any]) -> Numerics | None:
    """How the run of a checkpoint computes; None up to 0.3.5."""
    return Numerics(**content["numerics"]) if content.get("numerics") else None


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content`: tensors, numbers, text, lists, mappings."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save({"format": files.FORMAT, **content}, file)
        except RuntimeError as error:  # torch's archive writer hides what the file system said
            if "inline_container" not in str(error) and "PytorchStreamWriter" not in str(error):
                raise
            raise OSError(errno.ENOSPC, f"cannot write the checkpoint ({first_line(error)})", str(path)) from error
        file.flush()
        os.fsync(file.fileno())


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def load(path: Path, mapped: bool = False, verified: bool = True) -> dict[str, Any]:
    """Content of a checkpoint, see `segmodels.files.read`.

    Raises:
        InputError: no such file, not a checkpoint of ours, cut off, damaged, or of another format.
    """
    try:
        return files.read(path, mapped, verified)
    except FileError as error:
        raise InputError(str(error)) from None


def newest(folder: Path, mapped: bool = False, passed: list[str] | None = None) -> dict[str, Any] | None:
    """Content of the newest readable checkpoint of a stage.

    Args:
        folder: of the stage's checkpoints.
        mapped: leave the tensors in the files until they are looked at; their checksums are not compared then.
        passed: takes why newer ones were passed over.
    """
    for path in sorted(folder.glob(CHECKPOINTS), reverse=True):
        try:
            return load(path, mapped, verified=not mapped)
        except InputError as error:
            log.warning("%s; falling back to the checkpoint before it", error)
            if passed is not None:
                passed.append(str(error))
    return None


def check_views(views: int, rotate: float, path: Path) -> None:
    """Refuse to train on from what was trained on other views.

    Args:
        views: the version by which a checkpoint's views were cut.
        rotate: of its recipe's view.
        path: of the checkpoint, or the folder that holds it.

    Raises:
        InputError: the run was begun by a version that cuts other views from the same seeds.
    """
    if views != views_version(rotate):
        raise InputError(
            f"{path}: trained by a version that cuts other views from the same seeds, so its run cannot go on here. "
            "Finish it with that version, or train again under another name (name=OTHER; a study, --name OTHER)."
        )


def check_numerics(found: Numerics, now: Numerics, path: Path) -> None:
    """Refuse to go on with other numerics than a run began with.

    Raises:
        InputError: the precision, how gradients travel, or how many images a norm sees at once, is another.
    """
    if misfits := now.misfits(found):
        keys = [f"workers.precision={found.precision}", f"workers.count={found.world}"]
        keys += [f"workers.compress={found.compress or 'null'}"] if found.compress != now.compress else []
        if found.world > 1 and found.per_norm and not found.synchronised:  # `norm` may be a part of the run's name
            keys += [f"norm=local name={path.parent.parent.name} (up to 0.5 norms of CPU workers were local)"]
        raise InputError(
            f"{path}: this run would go on with other numbers than it began with ({'; '.join(misfits)}). Give it "
            f"{', '.join(keys[:-1])} and {keys[-1]} (or a workers.micro_batch with which a norm sees "
            f"{found.per_norm or 'as many'} images), or train again under another name (name=OTHER)."
        )


def prune(folder: Path, keep: int, step: int) -> None:
    """Keep the `keep` step files up to that of `step`, just written, and clear what killed writers left.

    A file of a later step was passed over as unreadable. Or its writer is this one's successor: a machine that was
    frozen and given up wakes, and goes on until it learns of it. Such a file stays.
    """
    paths, last = sorted(folder.glob(CHECKPOINTS)), step_name(step)
    good = [path for path in paths if path.name <= last]
    for path in [*good[:-keep], *(path for path in paths[len(good) :] if not readable(path))]:
        path.unlink(missing_ok=True)
    for path in folder.glob(TEMPORARY):
        path.unlink(missing_ok=True)


def readable(path: Path) -> bool:
    """Whether a checkpoint is whole."""
    try:
        load(path)
    except InputError:
        return False
    return True


def initialise(model: nn.Module, weights: Mapping[str, Tensor], same_classes: bool) -> list[str]:
    """Load the weights of the stage before; a classifier of other classes keeps its fresh values.

    Args:
        model: a Segmentor with fresh classifiers.
        weights: its state dict from the stage before.
        same_classes: whether both stages name the same classes in the same order.

    Returns:
        The names of the parameters that were left fresh.

    Raises:
        InputError: the weights are of another model.
    """
    fresh = [] if same_classes else classifier_keys(model)
    taken = {name: value for name, value in weights.items() if name not in fresh}
    own = model.state_dict()
    odd = sorted((set(own) - set(fresh)) ^ set(taken))
    odd += [n for n in taken if n in own and own[n].shape != taken[n].shape]
    if odd:
        raise InputError(
            f"the weights are of another model: {len(odd)} names or shapes differ, first {odd[:5]}. "
            "Backbone, head and aux must be those of the run that wrote them."
        )
    model.load_state_dict(taken, strict=False)
    return fresh
