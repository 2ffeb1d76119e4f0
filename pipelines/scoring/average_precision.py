"""Average precision of boxes and masks by COCO's rules (Lin et al., ECCV 2014), counted by pycocotools.

AP is the mean over classes and over the IoUs 0.50, 0.55, ... 0.95 of the precision at 101 recalls; AP50 and AP75 are
those of one IoU; small, medium and large are of objects under 32² pixels, up to 96², and above. Of an image and class
the 100 detections of the highest scores count. A crowd may match any number of detections, which then count nothing.

An object's size is its mask's number of pixels; COCO's own files keep the polygon's area, which differs by a few.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pycocotools import mask as rle_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from datasets.shards import Shards
from datasets.tasks.things import things
from pipelines.base.errors import InputError
from pipelines.scoring.scored import Scored, check_rows

KINDS = {"box": "bbox", "mask": "segm"}
"""What is compared: our name of it, and pycocotools'."""
SIZES = ("small", "medium", "large")  # COCOeval's ranges of area after the first, which is all
MOST = 2  # place of 100 among COCOeval's numbers of detections
IOUS = {"50": 0, "75": 5}  # places among COCOeval's IoUs
SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("boxes", pa.list_(pa.float32())),
        ("scores", pa.list_(pa.float32())),
        ("labels", pa.list_(pa.int64())),
        ("masks", pa.list_(pa.binary())),
    ]
)


@dataclass(frozen=True)
class Detections:
    """What a model found in one image.

    Args:
        row: of the shards.
        boxes: x1, y1, x2, y2 in pixels of the image, float32 (n, 4).
        scores: float32 (n,).
        labels: 0..K-1 of the things, int64 (n,).
        masks: COCO's compressed run lengths of each mask of the image.
    """

    row: int
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: tuple[bytes, ...]


def to_bytes(found: Sequence[Detections]) -> bytes:
    """The detections of a worker as an Arrow stream, to be sent to others."""
    columns = {
        "row": [d.row for d in found],
        "boxes": [d.boxes.reshape(-1) for d in found],
        "scores": [d.scores for d in found],
        "labels": [d.labels for d in found],
        "masks": [d.masks for d in found],
    }
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, SCHEMA) as writer:
        writer.write_table(pa.table(columns, schema=SCHEMA))
    return sink.getvalue()


def from_bytes(data: bytes) -> list[Detections]:
    """What `to_bytes` was given."""
    return [
        Detections(
            row["row"],
            np.array(row["boxes"], np.float32).reshape(-1, 4),
            np.array(row["scores"], np.float32),
            np.array(row["labels"], np.int64),
            tuple(row["masks"]),
        )
        for row in pa.ipc.open_stream(data).read_all().to_pylist()
    ]


def detection_scores(found: Iterable[Detections], shards: Shards) -> Scored:
    """The scores of a split from the detections on all of its rows, in any order; the value is the boxes' AP.

    Args:
        found: of each row exactly once.
        shards: of a benchmark with objects.

    Raises:
        RuntimeError: a row is missing, or is there twice.
        ValueError: a label is no class.
    """
    images = list(found)  # COCOeval sorts them
    check_rows((detections.row for detections in images), len(shards), shards.uri)
    numbers = things(shards.manifest.classes)
    labels = {label for detections in images for label in detections.labels.tolist()}
    if wrong := labels - set(range(len(numbers))):
        raise ValueError(f"label {min(wrong)} of a detection; {shards.uri} has {len(numbers)} classes of things")
    truth = _truth(shards, numbers)
    named: dict[str, float] = {}
    classes: list[float | None] = [None] * len(shards.manifest.classes)
    for kind, coco_kind in KINDS.items():
        precision = _precision(truth, _indexed(truth, _notes(images, truth, numbers, kind)), coco_kind)
        named |= _summary(kind, precision)
        if kind == "box":
            for place, number in enumerate(truth.getCatIds()):
                classes[number] = _mean(precision[:, :, place, 0, MOST])
    return Scored(named["box AP"], named, classes, len(shards))


def _truth(shards: Shards, numbers: tuple[int, ...]) -> COCO:
    """The objects of all rows, and the classes that occur: AP is a mean over these.

    Raises:
        InputError: there is no object.
    """
    images: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    for row, (height, width) in enumerate(shards.sizes.tolist()):
        images.append({"id": row, "height": height, "width": width})
        for segment in shards.segments(row) or ():
            if segment.number in numbers:
                rle = {"size": [height, width], "counts": segment.rle}
                notes.append({
                    "id": len(notes) + 1, "image_id": row, "category_id": segment.number,
                    "iscrowd": int(segment.crowd), "bbox": list(segment.box), "segmentation": rle,
                    "area": int(rle_api.area(rle)),
                })  # fmt: skip
    occurring = sorted({int(note["category_id"]) for note in notes if not note["iscrowd"]})
    if not occurring:
        raise InputError(f"{shards.uri} has no object in its {len(shards)} rows, so there is nothing to score; "
                         "validate on a split of coco_instances or coco_panoptic with objects")  # fmt: skip
    coco = COCO()
    coco.dataset = {"images": images, "annotations": notes, "categories": [{"id": number} for number in occurring]}
    with quiet():
        coco.createIndex()
    return coco


def _notes(found: Sequence[Detections], truth: COCO, numbers: tuple[int, ...], kind: str) -> list[dict[str, Any]]:
    """pycocotools' records of detections; an area is that of what is compared."""
    notes: list[dict[str, Any]] = []
    for d in found:
        size = [truth.imgs[d.row]["height"], truth.imgs[d.row]["width"]]
        for box, score, label, counts in zip(d.boxes.tolist(), d.scores.tolist(), d.labels, d.masks, strict=True):
            x, y, width, height = box[0], box[1], box[2] - box[0], box[3] - box[1]
            rle = {"size": size, "counts": counts}
            notes.append({
                "id": len(notes) + 1, "image_id": d.row, "category_id": numbers[label], "score": score, "iscrowd": 0,
                "bbox": [x, y, width, height], "segmentation": rle,
                "area": width * height if kind == "box" else int(rle_api.area(rle)),
            })  # fmt: skip
    return notes


def _indexed(truth: COCO, notes: list[dict[str, Any]]) -> COCO:
    """Detections as pycocotools wants them."""
    coco = COCO()
    coco.dataset = {key: truth.dataset[key] for key in ("images", "categories")} | {"annotations": notes}
    with quiet():
        coco.createIndex()
    return coco


def _precision(truth: COCO, found: COCO, kind: str) -> np.ndarray:
    """COCOeval's precision: IoUs, recalls, classes, sizes, numbers of detections; -1 where there is no object."""
    counted = COCOeval(truth, found, kind)
    with quiet():
        counted.evaluate()
        counted.accumulate()
    return counted.eval["precision"]


def _summary(kind: str, precision: np.ndarray) -> dict[str, float]:
    """The numbers for people by name; without those that have no object."""
    parts = {"AP": precision[..., 0, MOST]}
    parts |= {f"AP{iou}": precision[place, ..., 0, MOST] for iou, place in IOUS.items()}
    parts |= {f"AP {size}": precision[..., place, MOST] for place, size in enumerate(SIZES, 1)}
    means = {name: _mean(part) for name, part in parts.items()}
    return {f"{kind} {name}": mean for name, mean in means.items() if mean is not None}


def _mean(precision: np.ndarray) -> float | None:
    """The mean where there are objects; None where there are none."""
    there = precision[precision > -1]
    return float(there.mean()) if there.size else None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep pycocotools' progress off the screen."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
