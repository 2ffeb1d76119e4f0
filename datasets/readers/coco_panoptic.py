"""COCO 2017 panoptic (Kirillov et al., CVPR 2019): every pixel is one of 80 kinds of things or 53 of stuff."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle_api

from datasets.readers.coco_categories import STUFF, THINGS
from datasets.readers.coco_files import FORM_ERRORS, HOME, as_box, check_categories, image_files, notes_of
from datasets.readers.colours import pack, read_colour_png
from datasets.readers.files import check_folder, naming_file, of_file
from datasets.readers.labels import check_present, check_split, first_place, read_pair
from datasets.sample import IGNORE, Benchmark, DataError, Item, Sample, Segment
from datasets.text import named

CATEGORIES = THINGS | STUFF
CLASSES = tuple(CATEGORIES)
PALETTE = tuple(colour for _, colour in CATEGORIES.values())
NUMBERS = {key: number for number, (key, _) in enumerate(CATEGORIES.values())}
"""COCO's category id -> class 0..132."""

VOID = 0
COUNTS: dict[str, int | None] = {"train": 118287, "val": 5000}
TREE = """\
DIR/
  annotations/
    panoptic_train2017.json
    panoptic_val2017.json
    panoptic_train2017/ID.png          118287 RGB PNGs (an archive within the archive; may also be in DIR itself)
    panoptic_val2017/ID.png            5000; a segment's id is R + 256 G + 65536 B
  train2017/ID.jpg                     118287 images
  val2017/ID.jpg                       5000 images"""

Facts = tuple[tuple[int, int, bool, tuple[float, float, float, float]], ...]
"""A segment's id in the PNG, class, crowd or not, and box."""


def coco_panoptic(source: Path) -> Benchmark:
    """COCO 2017 panoptic: train 118287, val 5000 images; 133 classes: things 0..79, stuff 80..132; void is 255.

    `segments` are an image's regions in the file's order, with the published box; a crowd keeps its class in the
    mask, because its pixels have that class.
    """
    index = partial(index_panoptic, Path(source))
    return Benchmark("coco_panoptic", CLASSES, PALETTE, dict(COUNTS), TREE, index, read_panoptic, HOME)


def index_panoptic(source: Path, split: str) -> list[Item]:
    """The images in order of COCO's image id; labels are (path of the PNG, its time of change, facts of its segments).

    The time is part of the shards' fingerprint: where a PNG was replaced, its shards are written again.

    Raises:
        DataError: an unknown split, missing files, or an annotation file that is not COCO's or is another split's.
    """
    check_split(split, COUNTS, "coco_panoptic")
    check_folder(source)
    source = source.absolute()
    path = notes_of(source, "panoptic", split, TREE)
    images, notes = _parse(path)
    files = image_files(source, split, path, images, TREE)
    places = [folder / f"panoptic_{split}2017" for folder in (path.parent, source)]
    masks = next((place for place in places if place.is_dir()), places[0])
    check_present([masks / name for name, _ in notes.values()], TREE)
    return [Item(file.stem, str(file), _label(masks / notes[k][0], notes[k][1])) for k, file in files.items()]


def _label(png: Path, facts: Facts) -> tuple[str, int, Facts]:
    return str(png), png.stat().st_mtime_ns, facts


def _parse(path: Path) -> tuple[list[dict[str, Any]], dict[int, tuple[str, Facts]]]:
    """The images of an annotation file; each image id's PNG and the facts of its segments."""
    with naming_file(path, "not COCO's panoptic file", FORM_ERRORS), of_file(path):
        content = json.loads(path.read_bytes())
        check_categories(content["categories"], {name: key for name, (key, _) in CATEGORIES.items()})
        notes = {note["image_id"]: (note["file_name"], _facts(note)) for note in content["annotations"]}
        unlike = {image["id"] for image in content["images"]} ^ set(notes)
    if unlike:
        raise DataError(f"{path}: images without annotation, or annotations without image: {named(sorted(unlike))}. "
                        "Fetch the file again")  # fmt: skip
    return content["images"], notes


def _facts(note: dict[str, Any]) -> Facts:
    return tuple(
        (entry["id"], NUMBERS[entry["category_id"]], bool(entry["iscrowd"]), as_box(entry["bbox"]))
        for entry in note["segments_info"]
    )


def read_panoptic(item: Item) -> Sample:
    """Read an image, its mask of classes, and its segments with their outlines from the PNG.

    Raises:
        DataError: a damaged file, two sizes, or ids that the PNG and the annotation file do not share.
    """
    label: tuple[str, int, Facts] = item.label  # type: ignore[assignment]
    path, _, facts = label
    ids = pack(read_colour_png(path)[..., ::-1])
    _check_ids(ids, facts, path)
    sample = read_pair(item, lambda: _classes(ids, facts))
    outlines = (rle_api.encode(np.asfortranarray(ids == fact[0], np.uint8))["counts"] for fact in facts)
    segments = tuple(Segment(n, crowd, box, rle) for (_, n, crowd, box), rle in zip(facts, outlines, strict=True))
    return replace(sample, segments=segments)


def _check_ids(ids: np.ndarray, facts: Facts, path: str) -> None:
    drawn, noted = {int(key) for key in np.unique(ids)} - {VOID}, [fact[0] for fact in facts]
    if extra := sorted(drawn - set(noted)):
        row, column = first_place(ids == extra[0])
        raise DataError(f"{path}: segment id {extra[0]} at row {row}, column {column} is not in the annotation file; "
                        "PNG and JSON must be of one release. Fetch both again")  # fmt: skip
    if len(noted) != len(drawn):
        absent = sorted(set(noted) - drawn) or noted
        raise DataError(f"{path}: segment id {absent[0]} of the annotation file is not in the PNG, or is noted twice; "
                        "PNG and JSON must be of one release. Fetch both again")  # fmt: skip


def _classes(ids: np.ndarray, facts: Facts) -> np.ndarray:
    """The mask of classes, uint8 (H, W); pixels of no segment are 255."""
    classes = dict(sorted({VOID: IGNORE, **{fact[0]: fact[1] for fact in facts}}.items()))
    places = np.searchsorted(np.array(list(classes), np.int32), ids)
    return np.array(list(classes.values()), np.uint8)[places]
