"""A checkpoint of another task than segmentation, scored on a split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.cluster.device import precision_of
from pipelines.feed.plan import open_shards
from pipelines.recipes.model import how
from pipelines.recipes.tasks import metric_of
from pipelines.runs.checkpoint import Checkpoint
from pipelines.runs.results import lined, percent
from pipelines.scoring.evaluation import check_known, load_model, refuse_rows
from pipelines.scoring.scored import Scored
from pipelines.scoring.seen import digests
from pipelines.scoring.task import validate_task
from segmodels.kernels import settle_kernels


@dataclass(frozen=True)
class TaskPlan:
    """A checkpoint to score on a split: the shards' URI and rows, the protocol in words, and the precision."""

    path: Path
    uri: str
    rows: int
    words: str
    precision: str


def plan_task(path: Path, checkpoint: Checkpoint, uri: str, precision: str, allow_seen: bool) -> TaskPlan:
    """Check a checkpoint and a split against each other.

    Args:
        path: of the checkpoint.
        checkpoint: what it holds.
        uri: of the split's shards.
        precision: `auto`, `bf16`, `fp16` or `fp32`.
        allow_seen: score rows that were trained on too.

    Raises:
        DataError: shards that are missing or of another schema.
        InputError: other classes, or rows that were trained on.
    """
    shards = open_shards(uri)
    check_known(path, checkpoint, uri, shards.manifest)
    seen = int(np.isin(digests(shards), checkpoint.seen).sum())
    refuse_rows(seen, shards, allow_seen)
    told = f"; {seen} OF THEM WERE TRAINED ON" if seen else ""
    manifest = shards.manifest
    words = f"{manifest.benchmark} {manifest.split}, {manifest.rows} rows, {how(checkpoint.recipe)}{told}"
    return TaskPlan(path, uri, manifest.rows, words, precision)


def evaluate_here(plan: TaskPlan, checkpoint: Checkpoint, device: torch.device, beat: Callable[[], None]) -> Scored:
    """The scores of all rows, by this process."""
    precision = precision_of(plan.precision, device)
    settle_kernels(device, precision)
    model = load_model(checkpoint.recipe, checkpoint, device)
    return validate_task(model, checkpoint.recipe, plan.uri, device, 0, 1, precision, beat)


def lines(plan: TaskPlan, checkpoint: Checkpoint, scored: Scored) -> Iterator[str]:
    """The scores for people."""
    yield ""
    yield from lined(["score", "percent"], [[name, percent(value)] for name, value in scored.named.items()], [1])
    yield plan.words
    yield ""
    metric = metric_of(checkpoint.recipe.task)
    rows = [[name, percent(value)] for name, value in zip(checkpoint.classes, scored.classes, strict=True)]
    yield from lined(["class", metric], rows, [1])


def page(plan: TaskPlan, checkpoint: Checkpoint, scored: Scored) -> dict[str, Any]:
    """The scores for programs, shares 0 to 1."""
    return {
        "checkpoint": str(plan.path), "shards": plan.uri, "protocol": plan.words, "rows": scored.rows,
        "metric": metric_of(checkpoint.recipe.task), "scores": dict(scored.named),
        "classes": dict(zip(checkpoint.classes, scored.classes, strict=True)),
    }  # fmt: skip
