"""YOLO's polygons: data.yaml, and a text file per image."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from datasets.exports.drawn import drawn
from datasets.exports.finding import Finder, images_of, split_of
from datasets.exports.pages import in_form
from datasets.exports.records import Export, Outlined, Record, Shape, Told
from datasets.readers.own_tree import SPLITS
from datasets.sample import DataError
from datasets.strict_yaml import read_yaml
from datasets.text import lines_of, named, read_text, same_form

PAGES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
TREE = """\
DIR/                                   YOLO segmentation
  data.yaml                            names: [road, car]  or  {0: road, 1: car}; train:, val:, test: folders or lists
  images/train/NAME.jpg                or train/images/NAME.jpg (Roboflow)
  labels/train/NAME.txt                a line per object: class x1 y1 x2 y2 x3 y3 ..., in shares of width and height;
                                       an empty file: no object. Lines of a box (class x y width height) are refused"""


def fits(source: Path, files: list[str]) -> str:
    """Why a folder is YOLO's; "" where it is not."""
    page = next((name for name in PAGES if name in files), "")
    inside = any("/labels/" in f"/{path}" and path.endswith(".txt") for path in files)
    return f"{page} and folders labels/ of .txt files" if page and inside else ""


def read(source: Path, files: list[str], told: Told) -> Export:
    """Read a data set of YOLO; see `Format`."""
    name = next((name for name in PAGES if name in files), "")
    if not name:
        raise DataError(f"{source}: no data.yaml. Expected is:\n{TREE}")
    page = read_yaml(source / name, as_written=True)
    with in_form(name, "YOLO's page of a data set"):
        names, images = _names(page), _images(source, page, files, name)
    lists = {path for path in files if path.endswith(".txt") and "/labels/" not in f"/{path}"}
    there = {same_form(path): path for path in files}
    records = []
    for image, split in images.items():
        label = there.get(same_form(_label_of(image)))
        if label is not None:
            with in_form(label, "YOLO's labels"):
                records.append(Record(split, image, label, None, _shapes(source, label, names, name), fractions=True))
    read_of, stems = {record.file for record in records}, _folders(record.file for record in records)
    lonely = [path for path in files if path.endswith(".txt") and "/labels/" in f"/{path}" and path not in read_of]
    records += [Record("", _image_of(path), path, None, ()) for path in lonely if path.rpartition("/")[0] in stems]
    return drawn(source, Outlined(list(names), records, images, {name, *lists}), told, TREE)


def _folders(paths: Any) -> set[str]:
    return {path.rpartition("/")[0] for path in paths}


def _label_of(image: str) -> str:
    """images/train/A.jpg -> labels/train/A.txt: the last folder called images counts, as in Ultralytics' code."""
    head, found, tail = f"/{os.path.splitext(image)[0]}.txt".rpartition("/images/")
    return f"{head}/labels/{tail}".lstrip("/") if found else f"{os.path.splitext(image)[0]}.txt"


def _image_of(label: str) -> str:
    """The path that an image of a label would have."""
    head, _, tail = f"/{os.path.splitext(label)[0]}".rpartition("/labels/")
    return f"{head}/images/{tail}.*".lstrip("/")


def _names(page: Any) -> tuple[str, ...]:
    """The classes by their numbers.

    Raises:
        DataError: no names, numbers with gaps, or another count than `nc`.
    """
    given = page["names"]
    pairs = {int(key): str(name) for key, name in given.items()} if isinstance(given, dict) else dict(enumerate(given))
    if sorted(pairs) != list(range(len(pairs))) or not pairs:
        raise DataError(f"names has the numbers {named(sorted(pairs))}; expected are 0, 1, 2, ... Correct the page")
    names = tuple(str(pairs[k]) for k in range(len(pairs)))
    if "nc" in page and int(page["nc"]) != len(names):
        raise DataError(f"nc is {page['nc']}, names lists {len(names)} classes. Correct the page")
    return names


def _images(source: Path, page: Mapping[str, Any], files: list[str], name: str) -> dict[str, str]:
    """The images of each split that the page names; where it names none, all below a folder images."""
    images = images_of(files)
    found: dict[str, str] = {}
    named_splits = {split: page[split] for split in ("train", "val", "test") if page.get(split)}
    for split, entry in named_splits.items():
        for part in entry if isinstance(entry, list) else [entry]:
            for image in _part(source, str(page.get("path") or ""), str(part), files, images):
                if found.setdefault(image, split) != split:
                    raise DataError(f"{image} is in both {found[image]} and {split}; correct {name}")
    if named_splits:
        return found
    return {path: split_of(path) for path in images if "/images/" in f"/{path}"}


def _part(source: Path, root: str, entry: str, files: list[str], images: list[str]) -> list[str]:
    """The images of one entry of a split: a folder, or a list of images.

    The page may have been written for another place: leading `../` and `path` count only where they lead somewhere.
    """
    entry = entry.replace("\\", "/")
    plain = os.path.normpath(entry.lstrip("./")) if entry.startswith(".") else os.path.normpath(entry)
    tried = [os.path.normpath(os.path.join(root, entry)), plain, f"{plain}/images"]
    for folder in dict.fromkeys(path.strip("/") for path in tried if not path.startswith("..")):
        if inside := [path for path in images if same_form(path).startswith(f"{same_form(folder)}/")]:
            return inside
        if folder in files:
            finder = Finder(images)
            lines = lines_of(read_text(source / folder))
            listed = [finder.find(line, folder, [root] if root else []) for line in lines]
            if gone := [line for line, path in zip(lines, listed, strict=True) if path not in images]:
                raise DataError(f"{folder}: {len(gone)} of its images are not there: {named(gone)}. Add them, or "
                                "remove their lines")  # fmt: skip
            return listed
    if not any((source / folder).is_dir() for folder in tried if folder and not folder.startswith("..")):
        raise DataError(
            f"{entry!r} is named and not there; correct the entry, or remove it. Splits are {', '.join(SPLITS)}"
        )
    return []


def _shapes(source: Path, path: str, names: tuple[str, ...], page: str) -> tuple[Shape, ...]:
    """The objects of a label file.

    Raises:
        DataError: a line of a box, of another class, or that holds no numbers.
    """
    shapes = []
    for number, line in enumerate(lines_of(read_text(source / path)), 1):
        at = f"line {number}"
        first, *rest = line.split()
        try:
            index, values = int(float(first)), np.array(list(map(float, rest)))
        except ValueError:
            raise DataError(f"{at}: {line[:60]!r} are no numbers; expected is class x1 y1 x2 y2 x3 y3 ...") from None
        if not 0 <= index < len(names):
            raise DataError(f"{at}: class {index}; {page} names 0 to {len(names) - 1}. Correct one of them")
        if len(rest) in (4, 5):
            raise DataError(f"{at}: {len(rest)} numbers after the class are a box: a box says not which pixels. Export "
                            "the project as YOLO segmentation (polygons)")  # fmt: skip
        if len(rest) < 6 or len(rest) % 2:
            raise DataError(
                f"{at}: {len(rest)} numbers after the class; expected are pairs x y of three corners or more"
            )
        shapes.append(Shape(names[index], f"{at} ({names[index]})", (values.reshape(-1, 2),)))
    return tuple(shapes)
