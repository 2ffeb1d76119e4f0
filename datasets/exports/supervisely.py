"""Supervisely's projects: meta.json, and data sets of images with a JSON file each."""

import base64
import binascii
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from datasets.exports.drawn import drawn
from datasets.exports.finding import images_of, split_of
from datasets.exports.pages import corners, in_form, read_json
from datasets.exports.records import Colour, Export, Outlined, Record, Shape, Told
from datasets.sample import DataError
from datasets.text import same_form

META = "meta.json"
WHAT = "an annotation of Supervisely"
TREE = """\
DIR/                                   Supervisely
  meta.json                            classes, with their colours
  DATASET/img/NAME.jpg                 data sets called train, val, test are splits
  DATASET/ann/NAME.jpg.json            polygons with holes, bitmaps, rectangles; lines with --line-width"""


def fits(source: Path, files: list[str]) -> str:
    """Why a folder is a project of Supervisely; "" where it is not."""
    inside = any("/ann/" in f"/{path}" and path.endswith(".json") for path in files)
    return f"{META} and folders ann/" if META in files and inside else ""


def read(source: Path, files: list[str], told: Told) -> Export:
    """Read a project; see `Format`."""
    if META not in files:
        raise DataError(f"{source}: no {META}. Expected is:\n{TREE}")
    meta = read_json(source, META)
    with in_form(META, "a project's page of Supervisely"):
        names = [str(entry["title"]) for entry in meta["classes"]]
        palette = {str(entry["title"]): _colour(entry.get("color", "")) for entry in meta["classes"]}
    images = {same_form(path): path for path in images_of(files) if "/img/" in f"/{path}"}
    records = []
    for path in files:
        if "/ann/" not in f"/{path}" or not path.endswith(".json"):
            continue
        page = read_json(source, path)
        with in_form(path, WHAT):
            records.append(_record(path, page, images))
    outlined = Outlined(names, records, {path: split_of(path) for path in images.values()}, {META})
    outlined.palette = {name: colour for name, colour in palette.items() if colour}
    return drawn(source, outlined, told, TREE)


def _record(path: str, page: dict[str, Any], images: dict[str, str]) -> Record:
    """One file: `ann/NAME.jpg.json` is of `img/NAME.jpg`, in old projects `ann/NAME.json`."""
    folder, _, inside = f"/{path}".rpartition("/ann/")
    image = f"{folder}/img/{inside.removesuffix('.json')}".lstrip("/")
    found = images.get(same_form(image)) or next(
        (there for form, there in images.items() if form.rpartition(".")[0] == same_form(image)), image
    )
    size = int(page["size"]["height"]), int(page["size"]["width"])
    shapes = tuple(_shape(f"object {entry.get('id', i)} ({entry['classTitle']})", entry)
                   for i, entry in enumerate(page["objects"]))  # fmt: skip
    return Record(split_of(found), found, path, size, shapes)


def _shape(at: str, entry: dict[str, Any]) -> Shape:
    """One object.

    Raises:
        DataError: a kind that has no area, or a bitmap that does not read.
    """
    kind, name = entry.get("geometryType") or ("bitmap" if entry.get("bitmap") else "polygon"), str(entry["classTitle"])
    if kind == "bitmap":
        left, top = map(int, entry["bitmap"]["origin"])
        return Shape(name, at, bits=(_bits(entry["bitmap"]["data"], at), left, top))
    if kind not in ("polygon", "rectangle", "line", "polyline"):
        raise DataError(f"{at}: a {kind} has no area that is read; allowed are polygon, bitmap, rectangle and line. "
                        "Remove it, or convert it in the tool")  # fmt: skip
    outer = corners(entry["points"]["exterior"], at)
    if kind == "rectangle":
        (x0, y0), (x1, y1) = outer.min(0), outer.max(0)
        return Shape(name, at, (np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]),))
    if kind in ("line", "polyline"):
        return Shape(name, at, line=outer)
    return Shape(name, at, (outer,), tuple(corners(hole, at) for hole in entry["points"].get("interior") or ()))


def _bits(data: str, at: str) -> np.ndarray:
    """The pixels of a bitmap: a PNG, compressed by zlib, in base64; where it has transparency, what is opaque.

    Raises:
        DataError: it does not read.
    """
    try:
        stored = cv2.imdecode(np.frombuffer(zlib.decompress(base64.b64decode(data)), np.uint8), cv2.IMREAD_UNCHANGED)
    except (zlib.error, binascii.Error, cv2.error) as error:
        raise DataError(f"{at}: its bitmap does not read ({error}); export again") from error
    if stored is None:
        raise DataError(f"{at}: its bitmap holds no PNG; export again")
    if stored.ndim == 3:
        stored = stored[..., 3] if stored.shape[2] == 4 else stored.max(2)
    return stored != 0


def _colour(text: str) -> Colour | None:
    """#RRGGBB as a colour."""
    try:
        red, green, blue = bytes.fromhex(text.lstrip("#"))
    except ValueError:
        return None
    return red, green, blue
