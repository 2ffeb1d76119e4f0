"""What the readers of COCO share: annotation files, the images that they list, and outlines as run lengths."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle_api

from datasets.readers.labels import absent_unless, check_present
from datasets.readers.tables import pixels_covered
from datasets.sample import DataError
from datasets.text import named

HOME = "https://cocodataset.org/#download"
SPLITS = {"train": "val", "val": "train"}
"""The splits with published annotations; each with the split that users mistake for it."""

IMAGES, OBJECTS = {"train": 118287, "val": 5000}, {"train": 860001, "val": 36781}
"""What the released files of instances list."""
OUTSIDE = 1.0
"""So many pixels may a polygon reach beyond its image; COCO's own reach nowhere beyond it."""

FORM_ERRORS = (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError, IndexError)
"""The errors that a file of another form causes."""


def notes_of(source: Path, kind: str, split: str, tree: str) -> Path:
    """The annotation file of a split; kind ABSENT where neither it nor the split's folder of images is there.

    Args:
        source: COCO's folder, absolute.
        kind: instances or panoptic.
        split: train or val.
        tree: the expected folder, for the message.

    Raises:
        DataError: the file or the folder is missing.
    """
    path, images = source / "annotations" / f"{kind}_{split}2017.json", source / f"{split}2017"
    with absent_unless(path, images):
        check_present([path, images], tree)
    return path


def image_files(source: Path, split: str, notes: Path, images: Iterable[dict[str, Any]], tree: str) -> dict[int, Path]:
    """The files of the images that an annotation file lists, by COCO's image id and in its order.

    Args:
        source: COCO's folder, absolute.
        split: train or val.
        notes: the annotation file.
        images: the file's entries `images`.
        tree: the expected folder, for the message.

    Raises:
        DataError: the images are missing, or are those of the other split.
    """
    folder, listed = source / f"{split}2017", sorted(images, key=lambda image: image["id"])
    files = {image["id"]: folder / image["file_name"] for image in listed}
    for image in listed:
        # COCO's own address of an image names its split, even where the annotation file was renamed
        at = re.search(r"/(train|val|test)2017/", image.get("coco_url", ""))
        if at and at[1] != split:
            raise _of_other(notes, split, at[1], image["file_name"])
    other = SPLITS[split]
    for path in list(files.values())[:1]:
        if not path.exists() and (source / f"{other}2017" / path.name).exists():
            raise _of_other(notes, split, other, path.name)
    check_present(files.values(), tree)
    return files


def _of_other(notes: Path, split: str, found: str, name: str) -> DataError:
    return DataError(
        f"{notes}: lists images of {found}2017 ({name}), not of {split}2017: the annotations of another split under "
        f"this name. Put {split}'s file in its place ({HOME})"
    )


def check_categories(found: Iterable[dict[str, Any]], wanted: Mapping[str, int]) -> None:
    """Raise DataError unless the categories in the file are exactly the wanted ones, names and ids."""
    there = {category["name"]: category["id"] for category in found}
    if unlike := sorted(name for name in {*there, *wanted} if there.get(name) != wanted.get(name)):
        name = unlike[0]
        raise DataError(
            f"{len(unlike)} categories are not COCO's, the first is {name!r} (id {there.get(name)} in the "
            f"file, {wanted.get(name)} in COCO); expected are COCO's {len(wanted)}. Fetch the file again"
        )


def run_lengths(note: dict[str, Any], image: dict[str, Any]) -> dict[str, Any] | None:
    """Compressed run lengths of an object's outline.

    Args:
        note: COCO's record of the object; `segmentation` is a list of polygons, or run lengths, plain or compressed.
        image: COCO's record of its image.

    Returns:
        {"size": [H, W], "counts": bytes}; None where the outline encloses nothing.

    Raises:
        DataError: the outline is not one of this image; pycocotools would show whatever its memory holds.
    """
    segmentation, height, width = note["segmentation"], image["height"], image["width"]
    fault = outline_fault(segmentation, height, width)
    if fault:
        raise DataError(
            f"annotation {note['id']} of {image['file_name']}, which has {height}x{width} pixels (height x width): "
            f"{fault}; fetch the annotation file again"
        )
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        listed = isinstance(counts, list)
        packed = rle_api.frPyObjects(segmentation, height, width)["counts"] if listed else counts.encode()
        return {"size": [height, width], "counts": packed}
    # pycocotools reads four numbers as a box; fewer than three corners enclose nothing
    polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
    return rle_api.merge(rle_api.frPyObjects(polygons, height, width)) if polygons else None


def outline_fault(segmentation: Any, height: int, width: int) -> str:
    """What is wrong with a COCO `segmentation` of an image of this size; "" where nothing is."""
    if isinstance(segmentation, dict):
        if list(segmentation["size"]) != [height, width]:
            return f"its run lengths have the size {segmentation['size']}"
        counts = segmentation["counts"]
        negative = isinstance(counts, list) and min(counts, default=0) < 0
        covered = -1 if negative else sum(counts) if isinstance(counts, list) else pixels_covered(counts.encode())
        if covered < 0:
            return "its run lengths are no run lengths"
        return f"its run lengths cover {covered} pixels" if covered != height * width else ""
    for polygon in segmentation:
        corners = np.asarray(polygon, float)
        if corners.ndim != 1 or len(corners) % 2:
            return "a polygon is no list of pairs x, y"
        for values, side in ((corners[::2], width), (corners[1::2], height)):
            if not ((values >= -OUTSIDE) & (values <= side + OUTSIDE)).all():
                return f"a polygon reaches from {values.min():g} to {values.max():g} where 0 to {side} is the image"
    return ""


def images_by_id(content: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """COCO's records of images by their id, in the file's order.

    Raises:
        DataError: two records have one id, or an annotation names an image that has no record.
    """
    images = {image["id"]: image for image in content["images"]}
    if len(images) < len(content["images"]):
        raise DataError(f"{len(content['images']) - len(images)} images have the id of another; fetch the file again")
    if lost := [note["id"] for note in content["annotations"] if note["image_id"] not in images]:
        raise DataError(f"{len(lost):,} annotations belong to images that the file does not list: {named(lost)}; the "
                        "file is cut or changed, fetch it again")  # fmt: skip
    return images


def check_whole(content: dict[str, Any], split: str) -> None:
    """Raise DataError where a file lists all images of COCO 2017, but not all of their objects."""
    images, notes = len(content["images"]), len(content["annotations"])
    if images == IMAGES[split] and notes < OBJECTS[split]:
        raise DataError(f"{notes:,} objects of {images:,} images; COCO's {split}2017 has {OBJECTS[split]:,}. The file "
                        "is cut; fetch it again")  # fmt: skip


def as_box(box: Iterable[float]) -> tuple[float, float, float, float]:
    """A published box: x, y, width, height in pixels."""
    x, y, width, height = map(float, box)
    return x, y, width, height
