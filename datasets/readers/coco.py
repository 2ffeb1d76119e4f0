"""COCO 2017 (Lin et al., ECCV 2014) reduced to VOC's classes, as semantic masks for pre-training."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle_api

from datasets.readers.coco_files import (
    FORM_ERRORS,
    HOME,
    IMAGES,
    SPLITS,
    check_whole,
    image_files,
    images_by_id,
    notes_of,
    run_lengths,
)
from datasets.readers.files import check_folder, naming_file, of_file
from datasets.readers.labels import check_split, read_pair
from datasets.readers.voc import CLASSES, PALETTE
from datasets.sample import IGNORE, Benchmark, DataError, Item, Rows, Sample

MIN_PIXELS = 1000
VOC_NAME = {
    "airplane": "aeroplane", "bicycle": "bicycle", "bird": "bird", "boat": "boat", "bottle": "bottle", "bus": "bus",
    "car": "car", "cat": "cat", "chair": "chair", "cow": "cow", "dining table": "diningtable", "dog": "dog",
    "horse": "horse", "motorcycle": "motorbike", "person": "person", "potted plant": "pottedplant", "sheep": "sheep",
    "couch": "sofa", "train": "train", "tv": "tvmonitor",
}  # fmt: skip
"""COCO's name of a category -> VOC's; COCO's other 60 categories are background."""

TREE = """\
DIR/
  annotations/
    instances_train2017.json
    instances_val2017.json
  train2017/ID.jpg                     118287 images
  val2017/ID.jpg                       5000 images"""

Region = tuple[int, bool, dict[str, Any]]
"""Class, crowd or not, COCO's compressed run lengths {"size": [H, W], "counts": bytes}."""


def coco_voc(source: Path, min_pixels: int = MIN_PIXELS) -> Benchmark:
    """COCO 2017 with VOC's 21 classes.

    - The reader paints instances by area, largest first: where two overlap, the smaller stays visible.
    - Crowd regions of the 20 classes become 255 where no instance is painted.
    - The reader drops images with fewer than `min_pixels` pixels of classes 1..20, so no published row count applies.

    Args:
        source: the folder that `TREE` draws.
        min_pixels: the least number of labelled pixels.
    """
    index = partial(index_coco, Path(source), min_pixels=min_pixels)
    splits: dict[str, int | None] = dict.fromkeys(SPLITS)
    return Benchmark("coco_voc", CLASSES, PALETTE, splits, TREE, index, read_coco, HOME, listed=dict(IMAGES))


def index_coco(source: Path, split: str, min_pixels: int) -> list[Item]:
    """The kept images in order of COCO's image id; labels are (height, width, regions in painting order).

    Raises:
        DataError: an unknown split, missing images, or an annotation file that is not COCO's.
    """
    check_split(split, SPLITS, "coco_voc")
    check_folder(source)
    source = source.absolute()
    path = notes_of(source, "instances", split, TREE)
    images, regions = _parse(path, split)
    files = image_files(source, split, path, images.values(), TREE)
    ordered = {key: paint_order(regions.get(key, [])) for key in files}
    kept = [key for key, painted in ordered.items() if labelled_pixels(painted) >= min_pixels]
    sizes = {key: (image["height"], image["width"]) for key, image in images.items()}
    return Rows((Item(files[k].stem, str(files[k]), (*sizes[k], ordered[k])) for k in kept), len(images))


def _parse(path: Path, split: str) -> tuple[dict[int, dict[str, Any]], dict[int, list[Region]]]:
    """The images of an annotation file, and the regions of VOC's classes, both by image id."""
    with naming_file(path, "not COCO's instances file", FORM_ERRORS), of_file(path):
        content = json.loads(path.read_bytes())
        classes, images = _classes(content["categories"]), images_by_id(content)
        check_whole(content, split)
        regions: dict[int, list[Region]] = {}
        for note in sorted(content["annotations"], key=lambda n: n["id"]):
            if note["category_id"] in classes and (rle := run_lengths(note, images[note["image_id"]])):
                region = (classes[note["category_id"]], bool(note["iscrowd"]), rle)
                regions.setdefault(note["image_id"], []).append(region)
    return images, regions


def _classes(categories: list[dict[str, Any]]) -> dict[int, int]:
    """COCO category id -> VOC class, by name."""
    ids = {category["name"]: category["id"] for category in categories}
    if absent := sorted(set(VOC_NAME) - set(ids)):
        raise DataError(f"no category named {', '.join(absent)}; expected are COCO's 80. Fetch the file again")
    return {ids[name]: CLASSES.index(voc) for name, voc in VOC_NAME.items()}


def paint_order(regions: list[Region]) -> tuple[Region, ...]:
    """Sort regions: crowds first, then instances from the largest area to the smallest; equal ones by annotation id."""
    return tuple(sorted(regions, key=lambda region: (not region[1], -int(rle_api.area(region[2])))))


def labelled_pixels(regions: tuple[Region, ...]) -> int:
    """Pixels of classes 1..20 after painting: the area of the instances' union, computed without painting."""
    instances = [rle for _, crowd, rle in regions if not crowd]
    return int(rle_api.area(rle_api.merge(instances))) if instances else 0


def paint(height: int, width: int, regions: tuple[Region, ...]) -> np.ndarray:
    """Paint regions in the given order.

    Args:
        height: of the mask, pixels.
        width: of the mask, pixels.
        regions: what to paint.

    Returns:
        uint8 (H, W), 0 where nothing is painted.
    """
    mask = np.zeros((height, width), np.uint8)
    for number, crowd, rle in regions:
        mask[rle_api.decode(rle) != 0] = IGNORE if crowd else number
    return mask


def read_coco(item: Item) -> Sample:
    """Read an image and paint its regions.

    Raises:
        DataError: a damaged image, or one whose size is not the annotation file's.
    """
    label: tuple[int, int, tuple[Region, ...]] = item.label  # type: ignore[assignment]
    return read_pair(item, lambda: paint(*label), "its entry in the annotation file")
