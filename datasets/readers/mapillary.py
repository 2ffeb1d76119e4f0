"""Mapillary Vistas (Neuhold et al., ICCV 2017), labels of version 1.2: street scenes of the world, 66 labels."""

import json
from functools import partial
from pathlib import Path
from typing import Any

from datasets.readers.files import check_folder
from datasets.readers.labels import absent_unless, check_present, check_split, lookup_table, read_png_pair
from datasets.readers.tables import check_found, paired, unlabelled
from datasets.sample import IGNORE, Benchmark, DataError, Item
from datasets.text import read_text

NAMES = {
    "Bird": (165, 42, 42),
    "Ground Animal": (0, 192, 0),
    "Curb": (196, 196, 196),
    "Fence": (190, 153, 153),
    "Guard Rail": (180, 165, 180),
    "Barrier": (90, 120, 150),
    "Wall": (102, 102, 156),
    "Bike Lane": (128, 64, 255),
    "Crosswalk - Plain": (140, 140, 200),
    "Curb Cut": (170, 170, 170),
    "Parking": (250, 170, 160),
    "Pedestrian Area": (96, 96, 96),
    "Rail Track": (230, 150, 140),
    "Road": (128, 64, 128),
    "Service Lane": (110, 110, 110),
    "Sidewalk": (244, 35, 232),
    "Bridge": (150, 100, 100),
    "Building": (70, 70, 70),
    "Tunnel": (150, 120, 90),
    "Person": (220, 20, 60),
    "Bicyclist": (255, 0, 0),
    "Motorcyclist": (255, 0, 100),
    "Other Rider": (255, 0, 200),
    "Lane Marking - Crosswalk": (200, 128, 128),
    "Lane Marking - General": (255, 255, 255),
    "Mountain": (64, 170, 64),
    "Sand": (230, 160, 50),
    "Sky": (70, 130, 180),
    "Snow": (190, 255, 255),
    "Terrain": (152, 251, 152),
    "Vegetation": (107, 142, 35),
    "Water": (0, 170, 30),
    "Banner": (255, 255, 128),
    "Bench": (250, 0, 30),
    "Bike Rack": (100, 140, 180),
    "Billboard": (220, 220, 220),
    "Catch Basin": (220, 128, 128),
    "CCTV Camera": (222, 40, 40),
    "Fire Hydrant": (100, 170, 30),
    "Junction Box": (40, 40, 40),
    "Mailbox": (33, 33, 33),
    "Manhole": (100, 128, 160),
    "Phone Booth": (142, 0, 0),
    "Pothole": (70, 100, 150),
    "Street Light": (210, 170, 100),
    "Pole": (153, 153, 153),
    "Traffic Sign Frame": (128, 128, 128),
    "Utility Pole": (0, 0, 80),
    "Traffic Light": (250, 170, 30),
    "Traffic Sign (Back)": (192, 192, 192),
    "Traffic Sign (Front)": (220, 220, 0),
    "Trash Can": (140, 140, 20),
    "Bicycle": (119, 11, 32),
    "Boat": (150, 0, 255),
    "Bus": (0, 60, 100),
    "Car": (0, 0, 142),
    "Caravan": (0, 0, 90),
    "Motorcycle": (0, 0, 230),
    "On Rails": (0, 80, 100),
    "Other Vehicle": (128, 64, 64),
    "Trailer": (0, 0, 110),
    "Truck": (0, 0, 70),
    "Wheeled Slow": (0, 0, 192),
    "Car Mount": (32, 32, 32),
    "Ego Vehicle": (120, 10, 10),
}
"""Names by mask value, with their colours: `readable` and `color` of the release's config.json."""

UNLABELED = "Unlabeled"
"""The 66th label, value 65: its `evaluate` is false in config.json, so that 65 classes are scored."""

HOME = "https://www.mapillary.com/dataset/vistas"
CONFIGS = ("config_v1.2.json", "config.json")
COUNTS: dict[str, int | None] = {"train": 18000, "val": 2000, "test": 5000}
FOLDERS = {"train": "training", "val": "validation", "test": "testing"}
TREE = """\
DIR/
  config.json                          labels in order of their values; in release 2.0 config_v1.2.json
  training/images/KEY.jpg              18000 images
  training/labels/KEY.png              18000 palette PNGs (0-65); in release 2.0 training/v1.2/labels
  validation/images/KEY.jpg            2000
  validation/labels/KEY.png            2000; in release 2.0 validation/v1.2/labels
  testing/images/KEY.jpg               5000 without labels; needed only for split test"""


def mapillary(source: Path) -> Benchmark:
    """Mapillary Vistas 1.2: train 18,000, val 2,000 and test 5,000 images, the last without labels; 65 classes.

    Of the 66 labels the last, Unlabeled, is not evaluated and becomes 255. Of release 2.0 the labels of version 1.2
    are read, not its own 124.
    """
    table = lookup_table({**{k: k for k in range(len(NAMES))}, len(NAMES): IGNORE})
    read, index = partial(read_png_pair, table=table), partial(index_mapillary, Path(source))
    return Benchmark(
        "mapillary", tuple(NAMES), tuple(NAMES.values()), dict(COUNTS), TREE, index, read, HOME,
        ignored="label 65, Unlabeled, which config.json does not evaluate",
    )  # fmt: skip


def index_mapillary(source: Path, split: str) -> list[Item]:
    """The images of a split in order of their keys.

    Raises:
        DataError: an unknown split, missing files, or a config.json of other labels.
    """
    check_split(split, COUNTS, "mapillary")
    check_folder(source)
    root = source.absolute()
    folder = root / FOLDERS[split]
    images, places = folder / "images", [folder / "v1.2" / "labels", folder / "labels"]
    masks = next((place for place in places if place.is_dir()), places[1])
    with absent_unless(images, *([] if split == "test" else places)):
        check_present([images] if split == "test" else [images, masks], TREE)
    check_config(root)
    items = unlabelled(images, ".jpg") if split == "test" else paired(images, masks, (".jpg", ".png"), TREE)
    return check_found(items, images, ".jpg", TREE)


def check_config(root: Path) -> None:
    """Compare the release's labels with those that are read here: names, order, and which are evaluated.

    Raises:
        DataError: config.json is missing, no JSON, or has other labels, as that of the 124 labels of version 2.0.
    """
    path = next((root / name for name in CONFIGS if (root / name).is_file()), root / CONFIGS[1])
    check_present([path], TREE)
    try:
        page: Any = json.loads(read_text(path))
        labels = [(label["readable"], label["evaluate"]) for label in page["labels"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: no list of labels, each with readable and evaluate ({error}); fetch it again"
        ) from error
    wanted = [*((name, True) for name in NAMES), (UNLABELED, False)]
    if labels != wanted:
        value = next((k for k, (a, b) in enumerate(zip(labels, wanted, strict=False)) if a != b), min(len(labels), 66))
        found = f"{labels[value][0]!r}, evaluate {labels[value][1]}" if value < len(labels) else "nothing"
        raise DataError(
            f"{path}: {len(labels)} labels, value {value} is {found}; expected are the 66 of version 1.2. Of release "
            "2.0 keep config_v1.2.json and the folders v1.2"
        )
