"""labelme's JSON files: one beside each image."""

import base64
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from datasets.exports.drawn import drawn
from datasets.exports.finding import Finder, images_of, split_of
from datasets.exports.pages import corners, first_with, in_form, json_files
from datasets.exports.records import Export, Outlined, Record, Shape, Told
from datasets.sample import DataError

KEYS = {"shapes", "imagePath"}
WHAT = "a file of labelme"
TREE = """\
DIR/                                   labelme
  NAME.json                            one per image, in any folder; folders train, val, test are splits
  NAME.jpg                             where imagePath says; a picture inside the JSON (imageData) is not read
                                       polygon, rectangle, circle, mask; linestrip and line with --line-width;
                                       __ignore__ is ignored, _background_ is background"""


def fits(source: Path, files: list[str]) -> str:
    """Why a folder is labelme's; "" where it is not."""
    found = first_with(source, files, KEYS)
    return f"{found} has shapes and imagePath" if found else ""


def read(source: Path, files: list[str], told: Told) -> Export:
    """Read all labelme files of a folder; see `Format`."""
    pages = json_files(source, files, KEYS)
    if not pages:
        raise DataError(f"{source}: no JSON file with shapes and imagePath. Expected is:\n{TREE}")
    images = images_of(files)
    finder, records = Finder(images), []
    for path, page in pages.items():
        with in_form(path, WHAT):
            records.append(_record(path, page, finder))
    return drawn(source, Outlined([], records, {path: split_of(path) for path in images}), told, TREE)


def _record(path: str, page: dict[str, Any], finder: Finder) -> Record:
    """One file."""
    size = (int(page["imageHeight"]), int(page["imageWidth"])) if page.get("imageHeight") else None
    shapes = tuple(_shape(f"shape {i} ({shape['label']})", shape) for i, shape in enumerate(page["shapes"]))
    image = finder.find(str(page["imagePath"]), path)
    return Record(split_of(image) or split_of(path), image, path, size, shapes)


def _shape(at: str, shape: dict[str, Any]) -> Shape:
    """One shape.

    Raises:
        DataError: a kind that has no area.
    """
    kind, name = shape.get("shape_type") or "polygon", str(shape["label"])
    points = corners(shape["points"], at)
    if kind == "polygon":
        return Shape(name, at, (points,))
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points.min(0), points.max(0)
        return Shape(name, at, (np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]),))
    if kind == "circle":
        (x, y), edge = points
        return Shape(name, at, circle=(float(x), float(y), float(np.hypot(*(edge - (x, y))))))
    if kind == "mask":
        bits = cv2.imdecode(np.frombuffer(base64.b64decode(shape["mask"]), np.uint8), cv2.IMREAD_GRAYSCALE)
        left, top = np.round(points.min(0)).astype(int)
        return Shape(name, at, bits=(np.asarray(bits) != 0, int(left), int(top)))
    if kind in ("linestrip", "line"):
        return Shape(name, at, line=points)
    raise DataError(f"{at}: a {kind} encloses no pixel. Remove it, or draw a polygon in its place")
