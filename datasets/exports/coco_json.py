"""COCO's JSON as tools write it: Roboflow, CVAT, Label Studio and others."""

from pathlib import Path
from typing import Any

import numpy as np

from datasets.exports.drawn import drawn
from datasets.exports.finding import Finder, images_of, split_in_name, split_of
from datasets.exports.pages import corners, first_with, in_form, json_files
from datasets.exports.records import Export, Outlined, Record, Shape, Told
from datasets.sample import DataError
from datasets.text import named

KEYS = {"images", "annotations", "categories"}
ROBOFLOW = "_annotations.coco.json"
WHAT = "COCO's annotations"
TREE = """\
DIR/                                   COCO JSON, as
  train/_annotations.coco.json         Roboflow: images next to each file, splits train, valid, test
  train/*.jpg
  annotations/instances_default.json   CVAT: images in images/ or images/default/; instances_train.json is split train
  images/*.jpg
  result.json  images/*.jpg            others: one file, images wherever it names them
                                       polygons, and run lengths plain or compressed; boxes alone are refused"""


def fits(source: Path, files: list[str]) -> str:
    """Why a folder is an export of COCO JSON; "" where it is not."""
    if found := next((path for path in files if path.endswith(ROBOFLOW)), ""):
        return f"{found} is named as Roboflow's COCO"
    likely = [path for path in files if path.count("/") == 0 or path.startswith("annotations/")]
    found = first_with(source, likely, KEYS)
    return f"{found} has images, annotations and categories" if found else ""


def read(source: Path, files: list[str], told: Told) -> Export:
    """Read all COCO files of a folder; see `Format`."""
    pages = json_files(source, files, KEYS)
    if not pages:
        raise DataError(f"{source}: no JSON file with images, annotations and categories. Expected is:\n{TREE}")
    images = images_of(files)
    finder, outlined = Finder(images), Outlined([], [], {})
    for path, page in pages.items():
        with in_form(path, WHAT):
            _take(path, page, finder, outlined)
    folders = {path.rpartition("/")[0] for path in images if path in {r.image for r in outlined.records}}
    default = {r.image.rpartition("/")[0]: r.split for r in outlined.records}
    outlined.images = {path: default[path.rpartition("/")[0]] for path in images if path.rpartition("/")[0] in folders}
    return drawn(source, outlined, told, TREE)


def split_named(path: str) -> str:
    """The split of an annotation file: its folder's (Roboflow), else the end of its own name (CVAT)."""
    return split_of(path) or split_in_name(path.rpartition("/")[2].removesuffix(".json"))


def _take(path: str, page: dict[str, Any], finder: Finder, outlined: Outlined) -> None:
    """Add what one file holds."""
    split, stem = split_named(path), path.rpartition("/")[2].removesuffix(".json")
    subset = stem.rpartition("_")[2]
    near = [
        f"{folder}{inside}"
        for folder in ("images", "")
        for inside in ("", f"/{subset}", f"/{split}")
        if folder or inside
    ]
    notes: dict[int, list[tuple[str, dict[str, Any]]]] = {image["id"]: [] for image in page["images"]}
    if len(notes) < len(page["images"]):
        raise DataError("two images have one id; export again")
    for number, note in enumerate(page["annotations"]):
        at = f"annotation {note.get('id', number)}"
        if note["image_id"] not in notes:
            raise DataError(f"{at} belongs to image {note['image_id']}, which the file does not list; the file is cut "
                            "or changed, export again")  # fmt: skip
        notes[note["image_id"]].append((at, note))
    names = _categories(page, outlined)
    for image in page["images"]:
        found = finder.find(str(image["file_name"]), path, near)
        size = (int(image["height"]), int(image["width"])) if image.get("height") and image.get("width") else None
        shapes = tuple(_shape(at, note, names) for at, note in notes[image["id"]])
        outlined.records.append(Record(split or split_of(found), found, path, size, shapes))


def _categories(page: dict[str, Any], outlined: Outlined) -> dict[int, str]:
    """The names of a file's categories by id; adds them to the classes.

    Roboflow lists the project's name as a category 0 without objects, above all others: that is no class.
    """
    used = {note["category_id"] for note in page["annotations"]}
    above = {category.get("supercategory") for category in page["categories"]}
    listed = sorted(page["categories"], key=lambda category: category["id"])
    names = {category["id"]: str(category["name"]) for category in listed}
    if len(names) < len(listed):
        raise DataError("two categories have one id; export again")
    if unknown := sorted(used - set(names)):
        raise DataError(f"annotations are of categories {named(unknown)}, which the file does not list; export again")
    empty = {key for key, name in names.items() if key not in used and name in above}
    kept = [name for key, name in names.items() if key not in empty]
    if (
        empty
        and (note := f"no class, because it only stands above others: {names[min(empty)]!r}") not in outlined.notes
    ):
        outlined.notes.append(note)
    twice = [name for name in kept if kept.count(name) > 1]
    if twice:
        raise DataError(f"two categories are called {twice[0]!r}; rename one in the tool, and export again")
    outlined.names += [name for name in kept if name not in outlined.names]
    return names


def _shape(at: str, note: dict[str, Any], names: dict[int, str]) -> Shape:
    """One annotation.

    Raises:
        DataError: it has no outline.
    """
    outline, crowd, name = note.get("segmentation"), bool(note.get("iscrowd", 0)), names[note["category_id"]]
    if isinstance(outline, dict):
        return Shape(name, at, rle=outline, crowd=crowd)
    if not outline:
        raise DataError(f"{at} ({name}) has no outline, only a box: a box says not which pixels. Export the project as "
                        "segmentation (polygons or masks), or remove the annotation")  # fmt: skip
    rings = []
    for part in outline:
        if len(part) % 2:
            raise DataError(f"{at}: a polygon is no list of pairs x, y; export again")
        rings.append(corners([part[i : i + 2] for i in range(0, len(part), 2)], at))
    rings = [ring for ring in rings if len(ring) > 2]  # exports hold such parts; as COCO's readers do, they are passed
    nothing = None if rings else (np.zeros((1, 1), bool), 0, 0)
    return Shape(name, at, tuple(rings), bits=nothing, crowd=crowd)
