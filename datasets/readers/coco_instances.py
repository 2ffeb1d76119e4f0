"""COCO 2017 (Lin et al., ECCV 2014) with all 80 categories: objects with boxes and outlines, and a semantic mask."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle_api

from datasets.readers.coco import TREE, paint, paint_order
from datasets.readers.coco_categories import THINGS
from datasets.readers.coco_files import (
    FORM_ERRORS,
    HOME,
    as_box,
    check_categories,
    check_whole,
    image_files,
    images_by_id,
    notes_of,
    run_lengths,
)
from datasets.readers.files import check_folder, naming_file, of_file
from datasets.readers.labels import check_split, read_pair
from datasets.sample import Benchmark, Item, Sample, Segment

CLASSES = ("background", *THINGS)
PALETTE = ((0, 0, 0), *(colour for _, colour in THINGS.values()))
NUMBERS = {key: number for number, (key, _) in enumerate(THINGS.values(), 1)}
"""COCO's category id -> class 1..80."""

COUNTS: dict[str, int | None] = {"train": 118287, "val": 5000}


def coco_instances(source: Path) -> Benchmark:
    """COCO 2017 instances: train 118287, val 5000 images; 81 classes, background first.

    - `segments` are all objects of an image in order of COCO's annotation id: class 1..80, crowd or not, the
      published box and the outline; a polygon of fewer than three corners becomes an empty outline.
    - The mask is painted from them as in `coco_voc`: by area, largest first; crowds are 255 where no object is.
    - Images without objects (1,021 in train) are kept.
    """
    index = partial(index_instances, Path(source))
    return Benchmark("coco_instances", CLASSES, PALETTE, dict(COUNTS), TREE, index, read_instances, HOME)


def index_instances(source: Path, split: str) -> list[Item]:
    """The images in order of COCO's image id; labels are (height, width, segments).

    Raises:
        DataError: an unknown split, missing images, or an annotation file that is not COCO's or is another
            split's.
    """
    check_split(split, COUNTS, "coco_instances")
    check_folder(source)
    source = source.absolute()
    path = notes_of(source, "instances", split, TREE)
    images, segments = _parse(path, split)
    files = image_files(source, split, path, images.values(), TREE)
    sizes = {key: (image["height"], image["width"]) for key, image in images.items()}
    return [Item(file.stem, str(file), (*sizes[key], tuple(segments.get(key, ())))) for key, file in files.items()]


def _parse(path: Path, split: str) -> tuple[dict[int, dict[str, Any]], dict[int, list[Segment]]]:
    """The images of an annotation file, and their objects, both by image id."""
    segments: dict[int, list[Segment]] = {}
    with naming_file(path, "not COCO's instances file", FORM_ERRORS), of_file(path):
        content = json.loads(path.read_bytes())
        check_categories(content["categories"], {name: key for name, (key, _) in THINGS.items()})
        images = images_by_id(content)
        check_whole(content, split)
        for note in sorted(content["annotations"], key=lambda n: n["id"]):
            size = images[note["image_id"]]["height"], images[note["image_id"]]["width"]
            rle = run_lengths(note, images[note["image_id"]]) or rle_api.encode(np.zeros(size, np.uint8, order="F"))
            segment = Segment(NUMBERS[note["category_id"]], bool(note["iscrowd"]), as_box(note["bbox"]), rle["counts"])
            segments.setdefault(note["image_id"], []).append(segment)
    return images, segments


def read_instances(item: Item) -> Sample:
    """Read an image with its objects, and paint the objects.

    Raises:
        DataError: a damaged image, or one whose size is not the annotation file's.
    """
    label: tuple[int, int, tuple[Segment, ...]] = item.label  # type: ignore[assignment]
    height, width, segments = label
    regions = [(s.number, s.crowd, {"size": [height, width], "counts": s.rle}) for s in segments]
    sample = read_pair(item, lambda: paint(height, width, paint_order(regions)), "its entry in the annotation file")
    return replace(sample, segments=segments)
