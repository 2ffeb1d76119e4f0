"""A checkpoint of another task than segmentation, scored on a split."""

from __future__ import annotations

import itertools
import pickle
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.cluster.device import device_of, precision_of
from pipelines.cluster.sizes import Sizes
from pipelines.feed.plan import open_shards
from pipelines.feed.validation import view_batches
from pipelines.recipes.model import how
from pipelines.recipes.tasks import metric_of
from pipelines.recipes.views import val_view
from pipelines.runs.checkpoint import Checkpoint
from pipelines.runs.named import named_checkpoint
from pipelines.runs.results import lined, percent
from pipelines.scoring.evaluation import check_known, load_model, refuse_rows
from pipelines.scoring.scored import Scored
from pipelines.scoring.seen import digests
from pipelines.scoring.task import validate_task
from segmodels.kernels import settle_kernels


@dataclass(frozen=True)
class TaskPlan:
    """A checkpoint to score on a split: the shards' URI and rows, the protocol in words, and the precision.

    `source` is the checkpoint's URI, where it has one: then `path` is this machine's copy.
    """

    path: Path
    uri: str
    rows: int
    words: str
    precision: str
    source: str | None = None

    def named(self, given: str) -> TaskPlan:
        """The same, with the checkpoint as it was given."""
        return replace(self, source=given if "://" in given else None)


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


def evaluate_here(
    plan: TaskPlan, checkpoint: Checkpoint, device: torch.device, beat: Callable[[int], object], rank: int = 0,
    world: int = 1,
) -> Scored:  # fmt: skip
    """The scores of all rows, of all workers.

    Args:
        plan: from `plan_task`.
        checkpoint: its checkpoint.
        device: of this process.
        beat: is given the images that this process has counted since the last call.
        rank, world: of this process among the workers.
    """
    precision, recipe = precision_of(plan.precision, device), checkpoint.recipe
    settle_kernels(device, precision)
    model = load_model(recipe, checkpoint, device)
    mine = view_batches(open_shards(plan.uri), val_view(recipe), recipe.inference.batch)[rank::world]
    counts = itertools.chain([0], map(len, mine))  # the first beat comes before the first batch
    return validate_task(model, recipe, plan.uri, device, rank, world, precision, lambda: beat(next(counts)))


def evaluate_on_ray(plan: TaskPlan, sizes: Sizes, beat: Callable[[int], None]) -> Scored:
    """As `evaluate_here`, by several workers; `beat` is given the images that all of them have counted."""
    from pipelines.cluster.group import trainer
    from pipelines.cluster.tally import tallied

    def enter(config: dict[str, Any]) -> dict[str, Any]:
        # imported in the worker: Ray's controller need not load the models too
        from pipelines.scoring.task_evaluation import evaluate_worker

        return evaluate_worker(pickle.loads(config["plan"]), config["tally"], config["gpus"])

    with tempfile.TemporaryDirectory() as folder, tallied(beat) as tally:
        config = {"plan": pickle.dumps(plan), "tally": tally, "gpus": sizes.gpus}
        job = trainer(enter, config, sizes, "evaluate", Path(folder), failures=0)
        return Scored(**job.fit().return_value)  # type: ignore[attr-defined]


def evaluate_worker(plan: TaskPlan, tally: Any, gpus: int) -> dict[str, Any]:
    """One Ray worker's part; returns the fields of the scores of all workers: Ray's controller has no torch.

    Args:
        plan: what is scored.
        tally: is told of the images that were counted, see `tallied`.
        gpus: that it was given.
    """
    import ray.train

    from pipelines.cluster.group import process_group

    context = ray.train.get_context()
    checkpoint = Checkpoint.read(named_checkpoint(plan.source) if plan.source else plan.path, mapped=True)
    with process_group():
        rank, world = context.get_world_rank(), context.get_world_size()
        scored = evaluate_here(plan, checkpoint, device_of(gpus), tally.add.remote, rank, world)
    return dict(vars(scored))


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
