"""What the readers of COCO share: annotation files, the images that they list, and outlines as run lengths."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pycocotools import mask as rle_api

from datasets.readers.labels import check_present
from datasets.readers.tables import pixels_covered
from datasets.sample import DataError

HOME = "https://cocodataset.org/#download"
SPLITS = {"train": "val", "val": "train"}
"""The splits with published annotations; each with the split that users mistake for it."""

FORM_ERRORS = (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError, IndexError)
"""The errors that a file of another form causes."""


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


def check_categories(found: Iterable[dict[str, Any]], wanted: Mapping[str, int], path: Path) -> None:
    """Raise DataError unless the categories in the file are exactly the wanted ones, names and ids."""
    there = {category["name"]: category["id"] for category in found}
    if unlike := sorted(name for name in {*there, *wanted} if there.get(name) != wanted.get(name)):
        name = unlike[0]
        raise DataError(
            f"{path}: {len(unlike)} categories are not COCO's, the first is {name!r} (id {there.get(name)} in the "
            f"file, {wanted.get(name)} in COCO); expected are COCO's {len(wanted)}. Fetch the file again"
        )


def run_lengths(segmentation: Any, height: int, width: int) -> dict[str, Any] | None:
    """Compressed run lengths of an object's outline.

    Args:
        segmentation: a list of polygons, or run lengths, plain or compressed.
        height: of the image, pixels.
        width: of the image, pixels.

    Returns:
        {"size": [H, W], "counts": bytes}; None where the outline encloses nothing.

    Raises:
        DataError: the run lengths do not cover the image; pycocotools would show whatever its memory holds.
    """
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        listed = isinstance(counts, list)
        packed = rle_api.frPyObjects(segmentation, height, width)["counts"] if listed else counts.encode()
        if (covered := pixels_covered(packed)) != height * width:
            raise DataError(
                f"an object's run lengths cover {covered} pixels, its image has {height}x{width} (height x width); "
                "fetch the annotation file again"
            )
        return {"size": [height, width], "counts": packed}
    # pycocotools reads four numbers as a box; fewer than three corners enclose nothing
    polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
    return rle_api.merge(rle_api.frPyObjects(polygons, height, width)) if polygons else None


def as_box(box: Iterable[float]) -> tuple[float, float, float, float]:
    """A published box: x, y, width, height in pixels."""
    x, y, width, height = map(float, box)
    return x, y, width, height
