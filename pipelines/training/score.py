"""Validation in the middle of a training: scores, best weights, pictures."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.base import pictures
from pipelines.base.text import Progress
from pipelines.feed.plan import open_shards
from pipelines.feed.validation import shown_rows, validation_batches, view_batches
from pipelines.recipes.model import inference_of
from pipelines.recipes.tasks import SEGMENTATION, metric_of
from pipelines.recipes.views import val_view
from pipelines.runs.record import Record
from pipelines.scoring.task import validate_task
from pipelines.scoring.validate import validate
from pipelines.training.job import Job
from pipelines.training.learner import Learner, share_buffers
from pipelines.training.task_overlays import draw_task_overlays
from segmodels.held import images_at_once
from segmodels.inference import Inference, predict
from segmodels.metrics import scores
from segmodels.segmentor import Segmentor


def score(learner: Learner, step: int, record: Record, beat: Callable[[], None] = lambda: None) -> None:
    """Validate, record the scores, and keep the weights when they are the best so far.

    Args:
        step: steps of the stage that are done.
        record: of the stage.
        beat: called as often as there is progress.
    """
    import ray.train

    beat()
    share_buffers(learner.shown, learner.world)
    found = (score_masks if learner.job.recipe.task == SEGMENTATION else score_task)(learner, step, record, beat)
    learner.progress = learner.progress.scored(step, found.value)
    if learner.progress.best_step == step:
        learner.keep_best(step)
    if learner.rank == 0:
        record.add("val", step, miou=found.value, **found.line())
    ray.train.report({"step": step, "miou": found.value})


@dataclass(frozen=True)
class Found:
    """What a validation gives: the score, and what else the record's line says of it, which only rank 0 makes."""

    value: float
    line: Callable[[], dict[str, Any]]


def score_task(learner: Learner, step: int, record: Record, beat: Callable[[], None]) -> Found:
    """Validate a model of another task than segmentation."""
    job, recipe = learner.job, learner.job.recipe
    uri = str(job.val)
    batches = view_batches(open_shards(uri), val_view(recipe), recipe.inference.batch)
    scored = validate_task(
        learner.shown, recipe, uri, learner.device, learner.rank, learner.world, learner.precision,
        told(learner, batches, step, record, beat),
    )  # fmt: skip

    def line() -> dict[str, Any]:
        with learner.autocast():
            overlays = draw_task_overlays(job, learner.shown, step)
        found = {"metric": metric_of(recipe.task), "named": scored.named, "iou": scored.classes, "rows": scored.rows}
        counts = {} if scored.confusion is None else {"counts": saved_counts(job, step, scored.confusion)}
        return found | counts | {"overlays": overlays}

    return Found(scored.value, line)


def score_masks(learner: Learner, step: int, record: Record, beat: Callable[[], None]) -> Found:
    """Validate a segmentor."""
    job, recipe, shown = learner.job, learner.job.recipe, learner.shown
    spec = recipe.validation or recipe.inference
    inference = dataclasses.replace(inference_of(recipe, spec), flip_pairs=job.flip_pairs)
    most = images_at_once([inference], shown.num_classes, spec.batch)
    batches = validation_batches(open_shards(str(job.val)), most)
    counts = validate(
        shown, str(job.val), inference, learner.device, learner.rank, learner.world, learner.precision, spec.batch,
        told(learner, batches, step, record, beat),
    )  # fmt: skip
    result = scores(torch.from_numpy(counts))

    def line() -> dict[str, Any]:
        with learner.autocast():
            overlays = draw_overlays(job, shown, inference, learner.device, step)
        return {
            "accuracy": result.accuracy, "fwiou": result.fwiou, "iou": result.iou,
            "counts": saved_counts(job, step, counts),
            "overlays": overlays, "rows": len(open_shards(str(job.val))),
        }  # fmt: skip

    return Found(result.miou, line)


def saved_counts(job: Job, step: int, counts: np.ndarray) -> str:
    """Write a validation's confusion counts; their file, from the stage's folder on."""
    return str(Path(pictures.save_counts(job.place.counts(step), counts)).relative_to(job.folder))


def told(
    learner: Learner, batches: Sequence[Sequence[int]], step: int, record: Record, beat: Callable[[], None]
) -> Callable[[], None]:
    """A beat that also notes every few seconds how far the validation of this worker is; the screen shows it."""
    mine = batches[learner.rank :: learner.world]
    done = itertools.accumulate(map(len, mine), initial=0)
    images = "images" if learner.world == 1 else "images of this worker's share"
    progress = Progress(sum(map(len, mine)), images, lambda line: record.add("progress", step, text=f"val{line}"))

    def both() -> None:
        beat()
        progress.reach(next(done, 0))

    return both


def validation_steps(job: Job) -> set[int]:
    """Steps after which the stage validates: each `val_every` epochs, and the last."""
    if job.val is None:
        return set()
    every = job.stage.val_every * job.rows / job.recipe.batch
    regular = {round(k * every) for k in range(1, int(job.end / every) + 1)} if every >= 1 else set()
    return {step for step in regular if 0 < step < job.end} | {job.end}


@torch.inference_mode()
def draw_overlays(job: Job, model: Segmentor, inference: Inference, device: torch.device, step: int) -> list[str]:
    """Image | truth | prediction of the same few validation rows each time.

    Returns:
        The PNG files, from the stage's folder on, wherever people move it.
    """
    shards = open_shards(str(job.val))
    files = []
    for row in shown_rows(shards, job.recipe.overlays):
        image, mask = shards.sample(row)
        tensor = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].to(device)
        prediction = predict(model, tensor, inference).argmax(1)[0].cpu().numpy().astype(np.uint8)
        path = job.place.overlay(pictures.safe_name(shards.ids[row]), step)
        files.append(pictures.save_overlay(path, image, mask, prediction, job.palette))
    return [str(Path(file).relative_to(job.folder)) for file in files]
