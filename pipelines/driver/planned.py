"""The stages of a recipe with their shards opened, and checked against each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.manifest import Manifest, read_manifest
from datasets.shards import Shards
from pipelines.base.addresses import locate
from pipelines.base.errors import InputError
from pipelines.recipes.recipe import Recipe, Stage
from pipelines.runs.folder import RunFolder, StageFolder
from pipelines.runs.results import About
from pipelines.scoring.checks import check_sizes
from pipelines.scoring.seen import digests, refuse_seen


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


def plan_stages(recipe: Recipe, root: str, folder: Path | None = None) -> list[PlannedStage]:
    """Open the shards of all stages and check them against each other.

    Args:
        root: of the shards.
        folder: of a run that may have begun.

    Raises:
        DataError: shards that are missing or of another schema.
        InputError: classes that differ within a stage, unlabelled or too few rows, rows that a stage would be
            scored on after it, or a stage before it, was trained on them, or other rows than the run began with.
    """
    planned: list[PlannedStage] = []
    seen = np.zeros(0, np.int64)
    for stage in recipe.stages:
        train_uri = locate(root, stage.train)
        val_uri = locate(root, stage.val) if stage.val else None
        train, val = read_manifest(train_uri), read_manifest(val_uri) if val_uri else None
        for uri, manifest in ((train_uri, train), (val_uri, val)):
            if manifest is not None and (not manifest.labelled or not manifest.rows):
                raise InputError(f"stage {stage.name}: {uri} has {manifest.rows} rows, labelled: {manifest.labelled}")
        if val and val.classes != train.classes:
            raise InputError(
                f"stage {stage.name}: {stage.train} has {len(train.classes)} classes {list(train.classes[:4])}…, "
                f"{stage.val} has {len(val.classes)} {list(val.classes[:4])}…: they must be the same"
            )
        seen = np.union1d(seen, digests(Shards(train_uri)))
        if val_uri:
            refuse_seen(stage, seen, Shards(val_uri))
            check_sizes(recipe, recipe.validation or recipe.inference, stage.val or "", Shards(val_uri))
        steps = stage.steps or max(1, int((stage.epochs or 0) * train.rows // recipe.batch))
        warmup = recipe.optim.warmup if stage.warmup is None else stage.warmup
        if warmup >= steps:
            raise InputError(
                f"stage {stage.name}: warmup = {warmup} steps, the stage has {steps}: fewer, or more epochs"
            )
        planned.append(PlannedStage(stage, train_uri, val_uri, train, val, steps, seen))
        if folder is not None:
            check_rows(planned[-1], RunFolder(folder).stage(stage.name))
    return planned


def check_rows(plan: PlannedStage, place: StageFolder) -> None:
    """Make sure that a stage which has begun finds the rows that it began with.

    Raises:
        InputError: the shards hold others, so its steps and its score would be of both.
    """
    if not place.about.exists() or not place.has_begun:
        return
    noted = About.read(place.about).params
    for part, uri, manifest in (("train", plan.train_uri, plan.train), ("val", plan.val_uri, plan.val)):
        before = noted.get(f"shards.{part}.hash")
        if manifest and before and before != manifest.hash:
            raise InputError(
                f"stage {plan.stage.name}: {uri} holds other rows than when this run began (hash {before[:12]}… then, "
                f"{manifest.hash[:12]}… now). Put the shards of then there, or train anew under another name=…"
            )
