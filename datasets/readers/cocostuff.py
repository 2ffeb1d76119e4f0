"""COCO-Stuff (Caesar et al., CVPR 2018): 80 things and 91 kinds of stuff, in two releases (10K and 164K)."""

from functools import partial
from pathlib import Path

import numpy as np

from datasets.readers.labels import (
    absent_unless,
    check_items,
    check_split,
    colour_map,
    lookup_table,
    read_list,
    read_pair,
    read_png_pair,
    remap,
)
from datasets.readers.tables import check_found, first_folder, label_map, paired, read_mat, wide_table
from datasets.sample import IGNORE, Benchmark, DataError, Item, Sample

# In order of the label ids 1..182, without the 11 of COCO's 91 things that no image has.
CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
    "banner", "blanket", "branch", "bridge", "building-other", "bush", "cabinet", "cage", "cardboard", "carpet",
    "ceiling-other", "ceiling-tile", "cloth", "clothes", "clouds", "counter", "cupboard", "curtain", "desk-stuff",
    "dirt", "door-stuff", "fence", "floor-marble", "floor-other", "floor-stone", "floor-tile", "floor-wood", "flower",
    "fog", "food-other", "fruit", "furniture-other", "grass", "gravel", "ground-other", "hill", "house", "leaves",
    "light", "mat", "metal", "mirror-stuff", "moss", "mountain", "mud", "napkin", "net", "paper", "pavement",
    "pillow", "plant-other", "plastic", "platform", "playingfield", "railing", "railroad", "river", "road", "rock",
    "roof", "rug", "salad", "sand", "sea", "shelf", "sky-other", "skyscraper", "snow", "solid-other", "stairs",
    "stone", "straw", "structural-other", "table", "tent", "textile-other", "towel", "tree", "vegetable",
    "wall-brick", "wall-concrete", "wall-other", "wall-panel", "wall-stone", "wall-tile", "wall-wood", "water-other",
    "waterdrops", "window-blind", "window-other", "wood",
)  # fmt: skip
UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
IDS = tuple(number for number in range(1, 183) if number not in UNUSED)
PALETTE = colour_map(len(CLASSES) + 1)[1:]
"""VOC's colours without its black: the authors publish no colours, and their tools shuffle a rainbow each time."""
OLD_NAMES = 172
"""The number of names in a file of release 1.0, whose ids are different."""

HOME_10K = "https://github.com/nightrome/cocostuff10k"
HOME_164K = "https://github.com/nightrome/cocostuff"
COUNTS_10K: dict[str, int | None] = {"train": 9000, "test": 1000}
COUNTS_164K: dict[str, int | None] = {"train": 118287, "val": 5000}
TREE_10K = """\
DIR/                                   cocostuff-10k-v1.1, unpacked; or DIR/cocostuff-10k-v1.1
  imageLists/train.txt                 9000 names
  imageLists/test.txt                  1000
  images/COCO_train2014_*.jpg          10000 images
  annotations/COCO_train2014_*.mat     10000 files, field S: label ids 1-182, 0 = unlabeled"""
TREE_164K = """\
DIR/
  train2017/ID.jpg                     118287 images; or images/train2017
  val2017/ID.jpg                       5000; or images/val2017
  stuffthingmaps_trainval2017/         or annotations/
    train2017/ID.png                   118287 grey PNGs (label id - 1, so 0-181; 255 = unlabeled)
    val2017/ID.png                     5000"""


def cocostuff10k(source: Path) -> Benchmark:
    """COCO-Stuff 10K, release 1.1: train 9,000, test 1,000 images, both with labels; 171 classes.

    Ids 1..182 without the 11 unused become 0..170; 0 (unlabeled) becomes 255.
    """
    table = wide_table({0: IGNORE, **{number: k for k, number in enumerate(IDS)}})
    read, index = partial(read_cocostuff10k, table=table), partial(index_cocostuff10k, Path(source))
    return Benchmark("cocostuff10k", CLASSES, PALETTE, dict(COUNTS_10K), TREE_10K, index, read, HOME_10K)


def cocostuff164k(source: Path) -> Benchmark:
    """COCO-Stuff on COCO 2017: train 118,287, val 5,000 images; the same 171 classes.

    The PNGs store the id minus one. Their values become 0..170; 255 (unlabeled) stays.
    """
    table = lookup_table({IGNORE: IGNORE, **{number - 1: k for k, number in enumerate(IDS)}})
    read, index = partial(read_png_pair, table=table), partial(index_cocostuff164k, Path(source))
    return Benchmark("cocostuff164k", CLASSES, PALETTE, dict(COUNTS_164K), TREE_164K, index, read, HOME_164K)


def index_cocostuff10k(source: Path, split: str) -> list[Item]:
    """The rows of a list, in the list's order.

    Raises:
        DataError: an unknown split, or missing files.
    """
    check_split(split, COUNTS_10K, "cocostuff10k")
    lists = first_folder([source / "imageLists", source / "cocostuff-10k-v1.1/imageLists"], TREE_10K)
    stems = read_list(lists / f"{split}.txt", str, TREE_10K)
    images, masks = (lists.parent / kind for kind in ("images", "annotations"))
    items = [Item(stem, str(images / f"{stem}.jpg"), str(masks / f"{stem}.mat")) for stem in stems]
    check_items(items, TREE_10K)
    return items


def index_cocostuff164k(source: Path, split: str) -> list[Item]:
    """The images of a split in order of COCO's image id.

    Raises:
        DataError: an unknown split, or missing files.
    """
    check_split(split, COUNTS_164K, "cocostuff164k")
    name = f"{split}2017"
    of_images = [source / name, source / "images" / name]
    of_masks = [source / kind / name for kind in ("stuffthingmaps_trainval2017", "annotations", "stuffthingmaps")]
    with absent_unless(*of_images, *of_masks):
        images, masks = (first_folder(places, TREE_164K) for places in (of_images, of_masks))
    return check_found(paired(images, masks, (".jpg", ".png"), TREE_164K), images, ".jpg", TREE_164K)


def read_cocostuff10k(item: Item, table: np.ndarray) -> Sample:
    """Read an image and the field S of its .mat file.

    Raises:
        DataError: a damaged file, a file of release 1.0, a value that is no id in use, or two sizes.
    """
    path = str(item.label)
    return read_pair(item, lambda: remap(_label_ids(path), table, path))


def _label_ids(path: str) -> np.ndarray:
    content = read_mat(path, ("S", "names"))
    if np.size(content.get("names", ())) == OLD_NAMES:
        raise DataError(f"{path}: a mask of release 1.0, which numbers its {OLD_NAMES} labels differently; fetch 1.1")
    return label_map(content, "S", path)
