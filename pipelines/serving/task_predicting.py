"""Images predicted by models of other tasks than segmentation: classes, objects, panoptic pictures, and their files."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from datasets.tasks.things import category_ids, things
from pipelines.base.errors import InputError
from pipelines.base.files import write_json
from pipelines.cluster.device import precision_of
from pipelines.recipes.model import build_model
from pipelines.recipes.reading import convert
from pipelines.recipes.recipe import Recipe
from pipelines.recipes.views import val_view
from pipelines.scoring.average_precision import Detections
from pipelines.scoring.one_image import Prediction, predict_one
from pipelines.scoring.panoptic import PanopticPicture
from pipelines.scoring.task_pictures import found_objects, with_objects, with_segments
from pipelines.serving.predicting import Made, Task, guarded, made_of
from pipelines.serving.results import QUALITY, Results, png, write_bytes
from pipelines.serving.sources import Source
from pipelines.serving.task_tables import TABLES
from segmodels.files import for_use
from segmodels.kernels import settle_kernels
from segmodels.precision import autocast, default_device

TOP = 5
"""Classes of an image that are told, the likeliest first."""


@dataclass(frozen=True)
class TaskImages:
    """How images are predicted: all that a worker needs to know.

    Args:
        content: of the checkpoint, see `segmodels.files.for_use`.
        path: of the checkpoint, for messages.
        precision: `auto`, `bf16`, `fp16` or `fp32`.
        overlays: whether to draw them; a classifier has none.
    """

    content: Mapping[str, Any]
    path: Path
    precision: str
    overlays: bool

    @property
    def recipe(self) -> Recipe:
        """Of the checkpoint."""
        return convert(Recipe, self.content["recipe"], "")

    @property
    def classes(self) -> tuple[str, ...]:
        """K names."""
        return tuple(self.content["classes"])


def plan_images(path: Path, checkpoint: Mapping[str, Any], precision: str, overlays: bool) -> TaskImages:
    """How a checkpoint predicts images.

    Args:
        path: of it.
        checkpoint: what `segmodels.files.read` gives.
        precision: `auto`, `bf16`, `fp16` or `fp32`.
        overlays: whether to draw them.

    Raises:
        InputError: its recipe is one that this version cannot read.
    """
    task = convert(Recipe, checkpoint["recipe"], "").task
    return TaskImages(for_use(checkpoint), path, precision, overlays and task != "classification")


def about(plan: TaskImages) -> dict[str, Any]:
    """What the results of a plan depend on: what no resume may change."""
    with plan.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "checkpoint": digest, "task": plan.recipe.task, "inference": val_view(plan.recipe).words,
        "precision": plan.precision, "classes": plan.classes,
    }  # fmt: skip


class TaskPainter:
    """Predicts sources with a model that it holds, each image by one CPU thread, as `Painter` does.

    Args:
        plan: what to predict with.
    """

    def __init__(self, plan: TaskImages) -> None:
        self.plan, self.recipe = plan, plan.recipe
        device = default_device()
        self.on_gpu, self.gpu = guarded(device)
        self.precision = precision_of(plan.precision, device)
        settle_kernels(device, self.precision)
        net = build_model(self.recipe, len(plan.classes))
        net.load_state_dict(plan.content["model"])
        self.net, self.device = net.eval().to(device), device
        self.ids = category_ids(plan.classes)

    def make(self, task: Task) -> Iterator[Made]:
        """The results of a source, see `made_of`."""
        return made_of(task, self.paint, self.plan.overlays)

    def paint(self, name: str, image: np.ndarray, overlay: bool) -> Made:
        """The results of one image."""
        with self.gpu, autocast(self.device, self.precision):
            found = predict_one(self.net, self.recipe, self.plan.classes, image)
        size = {"height": image.shape[0], "width": image.shape[1]}
        picture = picture_png(found.pixels) if isinstance(found, PanopticPicture) else b""
        rows = [size, *rows_of(found, self.plan.classes, self.ids)]
        return Made(name, picture, self.overlay(image, found) if overlay else b"", rows)

    def overlay(self, image: np.ndarray, found: Prediction) -> bytes:
        """The image with what was found, as JPEG."""
        classes, palette = self.plan.classes, self.plan.content["palette"]
        if isinstance(found, Detections):
            drawn = with_objects(image, found_objects(found, classes), palette)
        elif isinstance(found, PanopticPicture):
            drawn = with_segments(image, found, classes, palette)
        else:
            return b""
        bgr = cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR)
        return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def rows_of(found: Prediction, classes: Sequence[str], ids: Sequence[int]) -> list[dict[str, Any]]:
    """What was found in an image, an entry each: classes, objects in COCO's form of results, or panoptic segments.

    Args:
        found: in it.
        classes: K names.
        ids: COCO's id of each class.
    """
    if isinstance(found, Detections):
        return objects(found, classes, ids)
    if isinstance(found, PanopticPicture):
        return segments(found, classes, ids)
    order = np.argsort(-found, kind="stable")[:TOP].tolist()
    return [
        {"rank": rank, "number": number, "class": classes[number], "probability": float(found[number])}
        for rank, number in enumerate(order, 1)
    ]


def objects(found: Detections, classes: Sequence[str], ids: Sequence[int]) -> list[dict[str, Any]]:
    """Detections, the surest first: box as x, y, width, height, mask as COCO's compressed run lengths."""
    numbers = things(tuple(classes))
    entries = []
    for i in np.argsort(-found.scores, kind="stable").tolist():
        x1, y1, x2, y2 = found.boxes[i].tolist()
        number = numbers[int(found.labels[i])]
        entries.append({
            "category_id": ids[number], "category": classes[number], "score": float(found.scores[i]),
            "bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": found.masks[i].decode("ascii"),
        })  # fmt: skip
    return entries


def segments(found: PanopticPicture, classes: Sequence[str], ids: Sequence[int]) -> list[dict[str, Any]]:
    """A panoptic picture's segments that have pixels; their ids, from 1 on, are those of `picture_png`."""
    is_thing = set(things(tuple(classes)))
    areas = np.bincount(found.pixels[found.pixels >= 0].ravel(), minlength=len(found.numbers)).tolist()
    return [
        {"id": place + 1, "category_id": ids[number], "category": classes[number], "isthing": int(number in is_thing),
         "area": area, "score": score}
        for place, (number, score, area) in enumerate(zip(found.numbers, found.scores, areas, strict=True))
        if area
    ]  # fmt: skip


def picture_png(pixels: np.ndarray) -> bytes:
    """COCO's panoptic PNG: a pixel's id is R + 256 G + 256² B, 0 for void.

    Args:
        pixels: int64 (H, W): the number of a pixel's segment, or -1.
    """
    ids = pixels + 1
    return png(Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)))


def left_to_do(results: Results, sources: Iterable[Source], overlays: bool) -> tuple[list[Task], list[str]]:
    """What is still to predict, and the names of the images that are there already.

    Raises:
        InputError: there is a video.
    """
    tasks, there = [], []
    for source in sources:
        if source.kind == "video":
            raise InputError(f"{source.place}: a video, which only models of task: segmentation take; give images")
        done = results.found(source.name).exists() and (results.overlay(source.name).exists() or not overlays)
        if done:
            there.append(source.name)
        else:
            tasks.append(Task(source))
    return tasks, there


def keep_found(results: Results, made: Iterable[Made], reach: Callable[[int], None]) -> tuple[list[Made], list[str]]:
    """Write what was found in each image as it comes.

    Returns:
        Those that have a fault, and the names of the others.
    """
    faults, names = [], []
    for done, one in enumerate(made, start=1):
        if one.fault:
            faults.append(one)
        else:
            if one.overlay:
                write_bytes(results.overlay(one.name), one.overlay)
            if one.mask:
                write_bytes(results.picture(one.name), one.mask)
            size, *found = one.rows
            write_json(results.found(one.name), {"image": one.name, **size, "found": found})  # last: it is done
            names.append(one.name)
        reach(done)
    return faults, names


def gather(results: Results, names: Iterable[str], plan: TaskImages) -> list[str]:
    """Write what was found in all images as one file, or two; returns their names.

    Raises:
        InputError: a file of an image does not read.
    """
    pages = (read_found(results.found(name)) for name in sorted(names))
    return TABLES[plan.recipe.task](results, pages, plan.classes, plan.content["palette"])


def read_found(path: Path) -> dict[str, Any]:
    """What was found in an image.

    Raises:
        InputError: it does not read.
    """
    with contextlib.suppress(OSError, ValueError):
        page: dict[str, Any] = json.loads(path.read_text())
        return page
    raise InputError(f"{path} does not read; remove it, and the same command predicts it again")
