"""PASCAL-Context (Mottaghi et al., CVPR 2014): whole scenes of VOC 2010, its 59 most frequent classes.

Two releases give the masks:

- `trainval_merged.json`, the file of the PASCAL in Detail challenge: one run-length mask per object or region, painted
  in the file's order, later ones over earlier ones. EncNet's code and its descendants train and score on these masks:
  4,996 and 5,104 images. Three of VOC's 4,998 and 5,105 have no entry.
- `trainval/ID.mat`, the authors' own: field LabelMap, one of 459 labels per pixel, for all 10,103 images. The rows are
  those of the lists in VOC 2010's `ImageSets/Main`, or of `train.txt` and `val.txt` next to the folder `trainval`.

Both have the same 459 labels; at borders their masks differ. Where both are there, the reader takes the JSON.
"""

import json
from functools import partial
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle_api

from datasets.readers.files import naming_file
from datasets.readers.labels import check_items, check_split, colour_map, read_list, read_pair, remap
from datasets.readers.tables import label_map, pixels_covered, read_mat, wide_table
from datasets.sample import IGNORE, Benchmark, DataError, Item, Sample

# In order of the 459 labels' numbers, which is alphabetical. The classes in EncNet's masks have the same order.
LABELS = {
    2: "aeroplane", 9: "bag", 18: "bed", 19: "bedclothes", 22: "bench", 23: "bicycle", 25: "bird", 31: "boat",
    33: "book", 34: "bottle", 44: "building", 45: "bus", 46: "cabinet", 59: "car", 65: "cat", 68: "ceiling",
    72: "chair", 80: "cloth", 85: "computer", 98: "cow", 104: "cup", 105: "curtain", 113: "dog", 115: "door",
    144: "fence", 158: "floor", 159: "flower", 162: "food", 187: "grass", 189: "ground", 207: "horse",
    220: "keyboard", 232: "light", 258: "motorbike", 259: "mountain", 260: "mouse", 284: "person", 295: "plate",
    296: "platform", 308: "pottedplant", 324: "road", 326: "rock", 347: "sheep", 349: "shelves", 354: "sidewalk",
    355: "sign", 360: "sky", 366: "snow", 368: "sofa", 397: "table", 415: "track", 416: "train", 420: "tree",
    424: "truck", 427: "tvmonitor", 440: "wall", 445: "water", 454: "window", 458: "wood",
}  # fmt: skip
LAST = 459
"""Labels are 1..459, and 0 where nothing is drawn."""
COLOURS = colour_map(len(LABELS) + 1)
"""VOC's colours, black for the background: no table of colours is published."""

HOME = "https://cs.stanford.edu/~roozbeh/pascal-context/"
MERGED = "trainval_merged.json"
COUNTS: dict[str, int | None] = {"train": 4998, "val": 5105}
MERGED_COUNTS: dict[str, int | None] = {"train": 4996, "val": 5104}
TREE = """\
DIR/                                   DIR may also be VOCdevkit or VOC2010 itself
  VOCdevkit/VOC2010/
    JPEGImages/ID.jpg                  10103 of these images; and, in VOC2010 or a folder above it, either
  trainval_merged.json                 of PASCAL in Detail: 4996 train and 5104 val images
  or
  trainval/ID.mat                      10103 masks of 459 labels, field LabelMap; rows from one of
    train.txt  val.txt                 next to the folder trainval, or from
    ImageSets/Main/{train,val}.txt     in VOC2010: 4998 and 5105 ids"""

FORM_ERRORS = (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError)
"""The errors that a JSON of another form causes."""

Regions = tuple[int, int, tuple[tuple[int, bytes], ...]]
"""Height, width, then label number and COCO's compressed run lengths of each region, in painting order."""


def pascal_context59(source: Path) -> Benchmark:
    """PASCAL-Context with 59 classes: all other labels become 255.

    Train 4,998, val 5,105 images from the .mat files; 4,996 and 5,104 from the JSON.
    """
    table = context_table(first=0, other=IGNORE)
    return _benchmark("pascal_context59", tuple(LABELS.values()), COLOURS[1:], table, Path(source))


def pascal_context60(source: Path) -> Benchmark:
    """PASCAL-Context with the background, as class 0, and 59 classes: all other labels become 0; no pixel is ignored.

    Train 4,998, val 5,105 images from the .mat files; 4,996 and 5,104 from the JSON.
    """
    table = context_table(first=1, other=0)
    return _benchmark("pascal_context60", ("background", *LABELS.values()), COLOURS, table, Path(source))


def context_table(first: int, other: int) -> np.ndarray:
    """A table for `labels.remap` of the 459 labels and 0.

    Args:
        first: class of the first of the 59 labels; the others follow.
        other: what all other labels become.

    Returns:
        uint8 (65536,).
    """
    classes = {number: first + k for k, number in enumerate(LABELS)}
    return wide_table({**dict.fromkeys(range(LAST + 1), other), **classes})


def _benchmark(
    name: str, classes: tuple[str, ...], palette: tuple[tuple[int, int, int], ...], table: np.ndarray, source: Path
) -> Benchmark:
    merged = any((folder / MERGED).is_file() for folder in _places(source))
    counts = MERGED_COUNTS if merged else COUNTS
    rows, read = partial(index_context, source, name=name), partial(read_context, table=table)
    return Benchmark(name, classes, palette, dict(counts), TREE, rows, read, HOME)


def index_context(source: Path, split: str, name: str) -> list[Item]:
    """The rows of a split in order of their ids (JSON) or of the list (.mat).

    Raises:
        DataError: an unknown split, missing files, or a JSON that has another form.
    """
    check_split(split, COUNTS, name)
    places = _places(source)
    root = places[0]
    if not (root / "JPEGImages").is_dir():
        raise DataError(f"{source}: no VOC2010/JPEGImages in it. Expected is this folder:\n{TREE}")
    for folder in places:
        if (path := folder / MERGED).is_file():
            return _from_json(path, root / "JPEGImages", split)
    for folder in places:
        if (folder / "trainval").is_dir():
            return _from_mats(folder, root, split)
    raise DataError(f"{source}: neither {MERGED} nor a folder trainval in it. Expected is this folder:\n{TREE}")


def _places(source: Path) -> list[Path]:
    """VOC2010 in or at the source, and the two folders above it."""
    source = source.absolute()
    root = next((p for p in (source / "VOCdevkit/VOC2010", source / "VOC2010") if p.is_dir()), source)
    return [root, root.parent, root.parent.parent]


def _from_mats(folder: Path, root: Path, split: str) -> list[Item]:
    own, official = folder / f"{split}.txt", root / "ImageSets/Main" / f"{split}.txt"
    stems = read_list(own if own.is_file() else official, _stem, TREE)
    images, masks = root / "JPEGImages", folder / "trainval"
    items = [Item(stem, str(images / f"{stem}.jpg"), str(masks / f"{stem}.mat")) for stem in stems]
    check_items(items, TREE)
    return items


def _from_json(path: Path, images: Path, split: str) -> list[Item]:
    with naming_file(path, "not the file of PASCAL in Detail", FORM_ERRORS):
        content = json.loads(path.read_bytes())
        rows = {row["image_id"]: row for row in content["images"] if row["phase"] == split}
        regions: dict[int, list[tuple[int, bytes]]] = {key: [] for key in rows}
        for note in content["annos_segmentation"]:
            if (row := rows.get(note["image_id"])) is not None:
                regions[note["image_id"]].append((index(note["category_id"]), _rle(note["segmentation"], row)))
        items = [
            Item(Path(row["file_name"]).stem, str(images / row["file_name"]),
                 (row["height"], row["width"], tuple(regions[key])))
            for key, row in sorted(rows.items())
        ]  # fmt: skip
    check_items(items, TREE)
    return items


def _rle(segmentation: dict[str, Any], row: dict[str, Any]) -> bytes:
    """COCO's compressed run lengths, from compressed or plain ones.

    Raises:
        DataError: the mask does not have the image's size.
    """
    height, width = row["height"], row["width"]
    if list(segmentation["size"]) != [height, width]:
        raise DataError(
            f"{MERGED}: {row['file_name']} is {width}x{height} pixels (width x height), one of its masks has the size "
            f"(height, width) {segmentation['size']}; fetch the file again"
        )
    counts = segmentation["counts"]
    return rle_api.frPyObjects(segmentation, height, width)["counts"] if isinstance(counts, list) else counts.encode()


def read_context(item: Item, table: np.ndarray) -> Sample:
    """Read an image and its LabelMap, or paint the image's regions.

    Raises:
        DataError: a damaged file, a label other than 0-459, or two sizes.
    """
    noted = "" if isinstance(item.label, str) else f"its entry in {MERGED}"
    return read_pair(item, lambda: remap(_labels(item), table, _source(item)), noted)


def _source(item: Item) -> str:
    return item.label if isinstance(item.label, str) else f"{item.image}, its regions in {MERGED}"


def _labels(item: Item) -> np.ndarray:
    """Label numbers, uint16 (H, W)."""
    if isinstance(item.label, str):
        return label_map(read_mat(item.label, ["LabelMap"]), "LabelMap", item.label)
    return paint(item.label, _source(item))  # type: ignore[arg-type]


def paint(regions: Regions, source: str) -> np.ndarray:
    """Paint regions in the given order, later over earlier; 0 where nothing is painted.

    Returns:
        uint16 (H, W).

    Raises:
        DataError: run lengths do not cover the image, or a label number has more than 16 bits.
    """
    height, width, painted = regions
    labels = np.zeros((height, width), np.uint16)
    for number, counts in painted:
        if not 0 <= number < 1 << 16 or pixels_covered(counts) != height * width:  # pycocotools accepts cut ones
            raise DataError(f"{source}: a region of label {number} does not decode; fetch the file again")
        labels[rle_api.decode({"size": [height, width], "counts": counts}) != 0] = number
    return labels


def _stem(line: str) -> str:
    return Path(line.split()[0]).stem
