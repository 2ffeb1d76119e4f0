"""What the readers of COCO share: annotation files, the images they list, and outlines as run lengths."""

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
"""The splits with published annotations, each with the one that it may be mistaken for."""

FORM_ERRORS = (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError, IndexError)
"""What reading a file of another form raises."""


def wrong_form(path: Path, kind: str, error: Exception) -> DataError:
    """The error of a file that is not COCO's."""
    return DataError(f"{path}: not COCO's {kind} file ({type(error).__name__}: {error}); fetch it anew")


def image_files(source: Path, split: str, notes: Path, images: Iterable[dict[str, Any]], tree: str) -> dict[int, Path]:
    """The files of the images that an annotation file lists, by COCO's image id, in order of it.

    Args:
        source: COCO's folder, absolute.
        split: train or val.
        notes: the annotation file.
        images: its entries `images`.
        tree: the expected folder, for the message.

    Raises:
        DataError: the images are those of the other split, or missing.
    """
    folder, listed = source / f"{split}2017", sorted(images, key=lambda image: image["id"])
    files = {image["id"]: folder / image["file_name"] for image in listed}
    for image in listed:
        # COCO's own address of an image names its split, whatever the annotation file was renamed to
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
    """Raise DataError unless the categories are exactly these, name by name and id by id."""
    there = {category["name"]: category["id"] for category in found}
    if unlike := sorted(name for name in {*there, *wanted} if there.get(name) != wanted.get(name)):
        name = unlike[0]
        raise DataError(
            f"{path}: {len(unlike)} categories are not COCO's, the first is {name!r} (id {there.get(name)} in the "
            f"file, {wanted.get(name)} in COCO); expected are COCO's {len(wanted)}. Fetch the file anew"
        )


def run_lengths(segmentation: Any, height: int, width: int) -> dict[str, Any] | None:
    """Compressed run lengths of a polygon list or of either run-length form; None where nothing is enclosed.

    Raises:
        DataError: run lengths that do not cover the image; pycocotools would show what its memory happens to hold.
    """
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        listed = isinstance(counts, list)
        packed = rle_api.frPyObjects(segmentation, height, width)["counts"] if listed else counts.encode()
        if (covered := pixels_covered(packed)) != height * width:
            raise DataError(
                f"an object's run lengths cover {covered} pixels, its image has {height}x{width} (height x width); "
                "fetch the annotation file anew"
            )
        return {"size": [height, width], "counts": packed}
    # pycocotools takes four numbers for a box; fewer than three corners enclose nothing
    polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
    return rle_api.merge(rle_api.frPyObjects(polygons, height, width)) if polygons else None


def as_box(box: Iterable[float]) -> tuple[float, float, float, float]:
    """A published box, x, y, width, height in pixels."""
    x, y, width, height = map(float, box)
    return x, y, width, height
