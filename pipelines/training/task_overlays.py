"""What a model of another task than segmentation sees in a few validation rows: the same ones at each validation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import nn

from datasets.sample import decode_image
from datasets.shards import Shards
from datasets.tasks.classification import class_of
from pipelines.base.pictures import labels, safe_name, write_png
from pipelines.feed.plan import open_shards
from pipelines.feed.validation import shown_rows
from pipelines.scoring.average_precision import Detections
from pipelines.scoring.one_image import classified, predict_one
from pipelines.scoring.panoptic import PanopticPicture
from pipelines.scoring.task_pictures import (
    enlarged,
    found_objects,
    sheet,
    side_by_side,
    true_objects,
    true_picture,
    with_objects,
    with_segments,
)
from pipelines.training.job import Job

SHEET = "sheet"


def draw_task_overlays(job: Job, model: nn.Module, step: int) -> list[str]:
    """Image | truth | prediction of each row; of classification one sheet of all rows.

    Args:
        job: of the stage; its recipe says how many rows.
        model: in evaluation mode.
        step: of the validation.

    Returns:
        The PNG files, from the stage's folder on, wherever people move it.
    """
    shards, files = open_shards(str(job.val)), []
    rows = shown_rows(shards, job.recipe.overlays)
    if job.recipe.task == "classification":
        cells = [cell_of(job, model, shards, row) for row in rows]
        files = [write_png(job.place.overlay(SHEET, step), sheet(cells))] if cells else []
    else:
        for row in rows:
            path = job.place.overlay(safe_name(shards.ids[row]), step)
            files.append(write_png(path, panels(job, model, shards, row)))
    return [str(Path(file).relative_to(job.folder)) for file in files]


def cell_of(job: Job, model: nn.Module, shards: Shards, row: int) -> tuple[np.ndarray, str, str]:
    """A row's image, its class, and the one that is predicted, with its probability."""
    image, names = decode_image(shards.encoded(row)[0]), labels(job.classes, 20)
    found = classified(model, job.recipe, image)
    guess = int(found.argmax())
    truth = class_of(shards.segments(row), shards.ids[row])
    return image, names[truth], f"{names[guess]}, {found[guess]:.0%}"


def panels(job: Job, model: nn.Module, shards: Shards, row: int) -> np.ndarray:
    """Image, truth and prediction of a row, side by side."""
    image, segments = decode_image(shards.encoded(row)[0]), shards.segments(row) or ()
    found = predict_one(model, job.recipe, job.classes, image)
    drawn: list[np.ndarray] = []
    if isinstance(found, Detections):
        both = [true_objects(segments, job.classes), found_objects(found, job.classes)]
        drawn = [with_objects(image, objects, job.palette, 3) for objects in both]
    elif isinstance(found, PanopticPicture):
        pictures = [true_picture(segments, (image.shape[0], image.shape[1])), found]
        drawn = [with_segments(image, one, job.classes, job.palette, 3) for one in pictures]
    return side_by_side([enlarged(image, 3), *drawn])
