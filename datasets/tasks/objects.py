"""Objects of images, and how a block of images with their objects travels: as raw bytes in an Arrow table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from pycocotools import mask as rle_api

from datasets.raw_column import flat
from datasets.sample import DataError, Segment
from datasets.shards import Shards
from datasets.tasks.resized import Placed
from datasets.tasks.things import NONE, label_table

LEAST_SIDE = 1.0
"""Pixels of the view; an object whose box is narrower or lower is left out."""


@dataclass(frozen=True)
class Objects:
    """What a view shows of an image's objects, as it travels.

    Args:
        boxes: x1, y1, x2, y2 in pixels of the view, float32 (n, 4).
        labels: 0..K-1 of the things, int64 (n,).
        windows: x, y, width, height of the least window of the view that holds an object's mask, int64 (n, 4).
        masks: COCO's compressed run lengths of each window, along its rows: most objects fill little of the canvas.
        seed: of this image in this epoch.
        size: height and width of the image within the canvas, pixels.
        semantic: uint8 (h, w) of the canvas, where the task has one.
    """

    boxes: np.ndarray
    labels: np.ndarray
    windows: np.ndarray
    masks: tuple[bytes, ...]
    seed: int
    size: tuple[int, int]
    semantic: np.ndarray | None = None


def read_objects(shards: Shards, row: int, placed: Placed, seed: int) -> Objects:
    """The things of a row in its view; crowds are left out, and what is under a pixel, or has no pixel.

    Args:
        shards: of a benchmark with objects.
        row: its number.
        placed: where the image lies.
        seed: of this image in this epoch.

    Raises:
        DataError: the split has only masks, or its classes do not tell what is a thing.
    """
    table, segments = label_table(shards.manifest.classes), shards.segments(row)
    if segments is None:
        raise DataError(
            f"{shards.uri}: its rows have only masks; detection needs objects, prepare coco_instances or coco_panoptic"
        )
    kept = [s for s in segments if not s.crowd and table[s.number] != NONE]
    boxes = placed.boxes(np.array([s.box for s in kept], np.float64).reshape(-1, 4))
    large = (boxes[:, 2:] - boxes[:, :2] >= LEAST_SIDE).all(axis=1)
    masks = [_mask(s, placed) if wide else None for s, wide in zip(kept, large, strict=True)]
    chosen = np.array([mask is not None for mask in masks], bool)
    windows, outlines = zip(*filter(None, masks), strict=True) if chosen.any() else ((), ())
    return Objects(
        boxes=boxes[chosen],
        labels=table[np.array([s.number for s in kept], np.int64)][chosen],
        windows=np.array(windows, np.int64).reshape(-1, 4),
        masks=outlines,
        seed=seed,
        size=placed.size,
    )


def _mask(segment: Segment, placed: Placed) -> tuple[tuple[int, ...], bytes] | None:
    """The window of an object's mask in the view, and its run lengths; None where it has no pixel."""
    pixels = rle_api.decode({"size": list(placed.source), "counts": segment.rle})
    seen = placed.turned(np.ascontiguousarray(pixels))
    x, y, width, height = cv2.boundingRect(seen)
    window = np.ascontiguousarray(seen[y : y + height, x : x + width])
    return ((x, y, width, height), rle_api.encode(window.T)["counts"]) if width else None


def pack(samples: Sequence[tuple[np.ndarray, Objects]]) -> pa.Table:
    """A block of images with their objects.

    Args:
        samples: images uint8 (h, w, 3), each of the size of its batch's canvas, and their objects.

    Returns:
        A row per sample.
    """
    images, objects = zip(*samples, strict=True)
    columns = {
        "image": _binary(images),
        "canvas": pa.array([image.shape[:2] for image in images], pa.list_(pa.int64(), 2)),
        "size": pa.array([o.size for o in objects], pa.list_(pa.int64(), 2)),
        "seed": pa.array([o.seed for o in objects], pa.uint64()),
        "boxes": pa.array([o.boxes.reshape(-1) for o in objects], pa.list_(pa.float32())),
        "labels": pa.array([o.labels for o in objects], pa.list_(pa.int64())),
        "windows": pa.array([o.windows.reshape(-1) for o in objects], pa.list_(pa.int64())),
        "masks": pa.array([o.masks for o in objects], pa.list_(pa.binary())),
    }
    if objects[0].semantic is not None:
        columns["semantic"] = _binary([o.semantic for o in objects])
    return pa.table(columns)


def _binary(arrays: Sequence[np.ndarray]) -> pa.Array:
    return pa.array([array.data.cast("B") for array in arrays], pa.binary())


def unpack(table: pa.Table) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The images of a batch, over the table's own bytes, and their targets.

    Args:
        table: rows of `pack` that share a canvas.

    Returns:
        uint8 (B, H, W, 3), only to be read, and for each image `boxes` float32 (n, 4), `labels` int64 (n,), `masks`
        uint8 (n, H, W), `seed`, `size` int64 (2,): height and width of the image in the canvas; and `semantic` uint8
        (H, W), only to be read, where the block has one.

    Raises:
        ValueError: the rows have several canvases: they are not of one batch.
    """
    canvases = {tuple(pair) for pair in table["canvas"].to_pylist()}
    if len(canvases) != 1:
        raise ValueError(f"rows of one batch share a canvas; these have {sorted(canvases)}")
    ((height, width),) = canvases
    targets = [_target(row, height, width) for row in table.drop_columns(["image", *_layers(table)]).to_pylist()]
    for name in _layers(table):
        for target, layer in zip(targets, flat(table[name]).reshape(-1, height, width), strict=True):
            target[name] = layer
    return flat(table["image"]).reshape(-1, height, width, 3), targets


def _layers(table: pa.Table) -> list[str]:
    """The names of the columns with a layer of the canvas' size."""
    return [name for name in table.column_names if name == "semantic"]


def _target(row: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    masks = np.zeros((len(row["masks"]), height, width), np.uint8)
    for mask, (x, y, w, h), counts in zip(
        masks, np.reshape(row["windows"], (-1, 4)).tolist(), row["masks"], strict=True
    ):
        mask[y : y + h, x : x + w] = rle_api.decode({"size": [w, h], "counts": counts}).T
    return {
        "boxes": np.array(row["boxes"], np.float32).reshape(-1, 4),
        "labels": np.array(row["labels"], np.int64),
        "masks": masks,
        "seed": row["seed"],
        "size": np.array(row["size"], np.int64),
    }
