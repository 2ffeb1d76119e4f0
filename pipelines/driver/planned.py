"""The stages of a recipe with their shards opened, and checked against the recipe and each other.

What needs no model is checked without importing torch, so that it is found at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.manifest import Manifest, read_manifest
from datasets.shards import Shards
from datasets.text import named
from pipelines.base.addresses import locate
from pipelines.base.errors import InputError
from pipelines.recipes.protocols import of_protocol
from pipelines.recipes.recipe import Recipe, Stage
from pipelines.recipes.tasks import SEGMENTATION, SOURCES
from pipelines.runs.folder import RunFolder, StageFolder
from pipelines.runs.results import About
from pipelines.scoring.seen import digests, refuse_seen

Guard = Callable[[], AbstractContextManager[None]]  # around each check: a dry run collects what the checks raise


@dataclass(frozen=True)
class PlannedStage:
    """A stage with its shards opened; `seen` are digests of all rows trained on when it ends."""

    stage: Stage
    train_uri: str
    val_uri: str | None
    train: Manifest
    val: Manifest | None
    steps: int
    seen: np.ndarray


@dataclass(frozen=True)
class Split:
    """A split that a stage names: its key in the recipe, where it is, what it holds."""

    key: str
    name: str
    uri: str
    manifest: Manifest


def plan_stages(
    recipe: Recipe, root: str, folder: Path | None = None, guard: Guard = nullcontext, seen: np.ndarray | None = None
) -> list[PlannedStage]:
    """Open the shards of all stages and check them against the recipe and each other.

    Args:
        root: of the shards.
        folder: of a run that may have begun.
        guard: is around each check.
        seen: digests of the rows that the weights were trained on with which the first stage starts.

    Raises:
        DataError: shards that are missing or of another schema.
        InputError: as `check_splits`; rows that a stage would be scored on after it, or a stage before it, was trained
            on them; or other rows than the run began with.
    """
    from pipelines.recipes.model import spec_by  # with torch
    from pipelines.scoring.checks import check_sizes

    planned: list[PlannedStage] = []
    seen = np.zeros(0, np.int64) if seen is None else seen
    for stage, train, val in check_splits(recipe, root, guard):
        with guard():
            seen = np.union1d(seen, digests(Shards(train.uri)))
        if val:
            with guard():
                refuse_seen(stage, seen, Shards(val.uri))
            if recipe.task == SEGMENTATION:
                with guard():
                    check_sizes(recipe, recipe.validation or recipe.inference, val.name, Shards(val.uri))
            for name in recipe.protocols:
                with guard(), of_protocol(name):
                    check_sizes(recipe, spec_by(name, recipe.inference), val.name, Shards(val.uri))
        planned.append(
            PlannedStage(
                stage, train.uri, val.uri if val else None, train.manifest, val.manifest if val else None,
                steps_of(recipe, stage, train.manifest.rows), seen,
            )
        )  # fmt: skip
        if folder is not None:
            with guard():
                check_rows(planned[-1], RunFolder(folder).stage(stage.name))
    return planned


def check_splits(recipe: Recipe, root: str, guard: Guard = nullcontext) -> Iterator[tuple[Stage, Split, Split | None]]:
    """Each stage with its splits, checked as far as their manifests tell; without torch.

    Args:
        root: of the shards.
        guard: is around each check; where it lets a training split be missing, its stage is left out.

    Raises:
        DataError: shards that are missing or of another schema.
        InputError: no labelled pixel, one class only, classes that differ within a stage or from the number that the
            loss weighs, or a warmup that is longer than the stage.
    """
    for stage in recipe.stages:
        train = val = None
        with guard():
            train = open_split("train", stage.train, root)
        with guard():
            val = open_split("val", stage.val, root) if stage.val else None
        for split in (train, val):
            if split is not None:
                with guard():
                    check_labels(stage, split, recipe.task)
        if train is None:
            continue
        with guard():
            check_classes(stage, train, val, recipe.task)
        with guard():
            check_class_weights(recipe, train)
        with guard():
            check_warmup(recipe, stage, train.manifest.rows)
        yield stage, train, val


def open_split(key: str, name: str, root: str) -> Split:
    """The split that a stage names as `train` or `val`."""
    uri = locate(root, name)
    return Split(key, name, uri, read_manifest(uri))


def check_labels(stage: Stage, split: Split, task: str) -> None:
    """A split must have the labels of the task.

    Raises:
        InputError: it has no rows, no masks, or no pixel of a class; for other tasks than segmentation no objects.
    """
    manifest = split.manifest
    if task != SEGMENTATION:
        if not manifest.rows or Shards(split.uri).peek(0)["segments"] is None:
            raise InputError(
                f"stage {stage.name}: {split.uri} ({manifest.benchmark}) has {manifest.rows} rows, without objects: "
                f"task: {task} needs shards of {', '.join(SOURCES[task])}"
            )
        return
    if not manifest.labelled or not manifest.rows:
        raise InputError(
            f"stage {stage.name}: {split.uri} has {manifest.rows} rows, labelled: {manifest.labelled}. Name a split "
            f"with masks: stages.{stage.name}.{split.key}=…"
        )
    if not sum(manifest.histogram[: len(manifest.classes)]):
        lost, cure = ("scored", "leave `val` out") if split.key == "val" else ("learnt", "name another split")
        raise InputError(
            f"stage {stage.name}: {split.uri} has no labelled pixel: all pixels of its {manifest.rows} masks are "
            f"ignored, so nothing can be {lost}. Prepare it again with masks of "
            f"its classes, or {cure}."
        )


def check_classes(stage: Stage, train: Split, val: Split | None, task: str) -> None:
    """Training and validation must have the same classes, two or more where everything is of one.

    Raises:
        InputError: they do not.
    """
    classes = list(train.manifest.classes)
    if len(classes) < 2 and task != "detection":
        raise InputError(
            f"stage {stage.name}: {train.uri} has only the class {classes[0]!r}: every pixel is of it, so there is "
            "nothing to learn. Name what else there is, such as background, in classes.yaml, and prepare again."
        )
    if val and val.manifest.classes != train.manifest.classes:
        there = list(val.manifest.classes)
        raise InputError(
            f"stage {stage.name}: {train.name} has {len(classes)} classes {classes[:4]}…, "
            f"{val.name} has {len(there)} {there[:4]}…: they must be the same"
        )


def check_class_weights(recipe: Recipe, train: Split) -> None:
    """Weights of classes must be as many as the classes.

    Raises:
        InputError: they are not.
    """
    classes = train.manifest.classes
    for output, terms in recipe.loss.items():
        for term, options in terms.items():
            given: Any = options.get("class_weights") if isinstance(options, dict) else None
            if isinstance(given, list) and len(given) != len(classes):
                raise InputError(
                    f"loss.{output}.{term}.class_weights has {len(given)} numbers, but {train.uri} has {len(classes)} "
                    f"classes: {named(classes)}. `python -m pipelines.audit {train.uri}` prints weights to paste."
                )


def check_warmup(recipe: Recipe, stage: Stage, rows: int) -> None:
    """A warmup must end before its stage.

    Raises:
        InputError: it does not.
    """
    steps = steps_of(recipe, stage, rows)
    warmup = recipe.optim.warmup if stage.warmup is None else stage.warmup
    if warmup >= steps:
        raise InputError(
            f"stage {stage.name}: warmup = {warmup} steps, but the stage has only {steps}. Warm up in fewer steps, or "
            "train for more epochs"
        )


def steps_of(recipe: Recipe, stage: Stage, rows: int) -> int:
    """Steps of a stage."""
    return stage.steps or max(1, int((stage.epochs or 0) * rows // recipe.batch))


def check_rows(plan: PlannedStage, place: StageFolder) -> None:
    """Make sure that a stage which has begun finds the rows that it began with.

    Raises:
        InputError: the shards hold others, so that its steps and its score would be of both.
    """
    if not place.about.exists() or not place.has_begun:
        return
    noted = About.read(place.about).params
    for part, uri, manifest in (("train", plan.train_uri, plan.train), ("val", plan.val_uri, plan.val)):
        before = noted.get(f"shards.{part}.hash")
        if manifest and before and before != manifest.hash:
            raise InputError(
                f"stage {plan.stage.name}: {uri} holds other rows than when this run began (hash {before[:12]}… then, "
                f"{manifest.hash[:12]}… now). Bring those shards back, or train again under another name=…"
            )
