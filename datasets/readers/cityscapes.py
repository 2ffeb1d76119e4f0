"""Cityscapes with fine labels (Cordts et al., CVPR 2016): 19 classes of street scenes, 2048x1024 pixels."""

import os
from functools import partial
from pathlib import Path

from datasets.readers.labels import absent_unless, check_present, check_split, lookup_table, read_png_pair
from datasets.readers.tables import check_found, paired, unlabelled
from datasets.sample import IGNORE, Benchmark, Item

# Label id: name, colour. The order of the ids is that of the official train ids.
LABELS = {
    7: ("road", (128, 64, 128)),
    8: ("sidewalk", (244, 35, 232)),
    11: ("building", (70, 70, 70)),
    12: ("wall", (102, 102, 156)),
    13: ("fence", (190, 153, 153)),
    17: ("pole", (153, 153, 153)),
    19: ("traffic light", (250, 170, 30)),
    20: ("traffic sign", (220, 220, 0)),
    21: ("vegetation", (107, 142, 35)),
    22: ("terrain", (152, 251, 152)),
    23: ("sky", (70, 130, 180)),
    24: ("person", (220, 20, 60)),
    25: ("rider", (255, 0, 0)),
    26: ("car", (0, 0, 142)),
    27: ("truck", (0, 0, 70)),
    28: ("bus", (0, 60, 100)),
    31: ("train", (0, 80, 100)),
    32: ("motorcycle", (0, 0, 230)),
    33: ("bicycle", (119, 11, 32)),
}
IDS = 34
"""Label ids are 0..33; 15 of them are no class and are not evaluated."""
LICENSE_PLATE = 255
"""Id -1, in 8 bits. The released masks are drawn without it: these pixels have the id of what is below, the car."""

HOME = "https://www.cityscapes-dataset.com/downloads/"
IMAGE, MASK = "_leftImg8bit.png", "_gtFine_labelIds.png"
COUNTS: dict[str, int | None] = {"train": 2975, "val": 500, "trainval": 3475, "test": 1525}
TREE = """\
DIR/
  leftImg8bit/train/CITY/CITY_*_leftImg8bit.png          2975 images in 18 cities
  leftImg8bit/val/CITY/*_leftImg8bit.png                 500 in 3
  leftImg8bit/test/CITY/*_leftImg8bit.png                1525 in 6; needed only for split test
  gtFine/train/CITY/CITY_*_gtFine_labelIds.png           2975 grey PNGs of label ids 0-33
  gtFine/val/CITY/*_gtFine_labelIds.png                  500; gtFine/test is not read"""


def cityscapes(source: Path) -> Benchmark:
    """Cityscapes: train 2,975, val 500, trainval 3,475 and test 1,525 images; 19 classes.

    The released masks hold label ids; 19 of these become the train ids, all others 255. The test split has no
    labels: its released masks show only the car's own bonnet and the border. `trainval` is train, then val; models
    for the test server train on it.
    """
    others = {**dict.fromkeys(range(IDS), IGNORE), LICENSE_PLATE: IGNORE}
    table = lookup_table({**others, **{number: k for k, number in enumerate(LABELS)}})
    names, palette = zip(*LABELS.values(), strict=True)
    read, index = partial(read_png_pair, table=table), partial(index_cityscapes, Path(source))
    return Benchmark("cityscapes", names, palette, dict(COUNTS), TREE, index, read, HOME)


def index_cityscapes(source: Path, split: str) -> list[Item]:
    """The images of a split in order of city, sequence and frame; an id is, for example, aachen_000000_000019.

    Raises:
        DataError: an unknown split, or missing files.
    """
    check_split(split, COUNTS, "cityscapes")
    if split == "trainval":
        return [item for part in ("train", "val") for item in index_cityscapes(source, part)]
    images, masks = (source.absolute() / kind / split for kind in ("leftImg8bit", "gtFine"))
    with absent_unless(images, *([] if split == "test" else [masks])):
        check_present([images] if split == "test" else [images, masks], TREE)
    if split == "test":
        items = [item for city in sorted(os.listdir(images)) for item in unlabelled(images / city, IMAGE)]
    else:
        cities = sorted({*os.listdir(images), *os.listdir(masks)})  # a stray file among them holds no images
        items = [item for city in cities for item in paired(images / city, masks / city, (IMAGE, MASK), TREE)]
    return check_found(items, images, f"/*{IMAGE}", TREE)
