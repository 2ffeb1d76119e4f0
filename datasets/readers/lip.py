"""Look Into Person (Gong et al., CVPR 2017): single persons, parsed into 19 parts."""

from functools import partial
from pathlib import Path

from datasets.readers.files import check_folder
from datasets.readers.labels import absent_unless, check_items, check_split, lookup_table, read_list, read_png_pair
from datasets.sample import IGNORE, Benchmark, Item

NAMES = {
    "background": (0, 0, 0),
    "hat": (128, 0, 0),
    "hair": (255, 0, 0),
    "glove": (0, 85, 0),
    "sunglasses": (170, 0, 51),
    "upper-clothes": (255, 85, 0),
    "dress": (0, 0, 85),
    "coat": (0, 119, 221),
    "socks": (85, 85, 0),
    "pants": (0, 85, 85),
    "jumpsuits": (85, 51, 0),
    "scarf": (52, 86, 128),
    "skirt": (0, 128, 0),
    "face": (0, 0, 255),
    "left-arm": (51, 170, 221),
    "right-arm": (0, 255, 255),
    "left-leg": (85, 255, 170),
    "right-leg": (170, 255, 85),
    "left-shoe": (255, 255, 0),
    "right-shoe": (255, 170, 0),
}
"""Names by mask value, with the colours of the authors' code (LIP_JPPNet)."""

FLIP_PAIRS = ((14, 15), (16, 17), (18, 19))
HOME = "https://lip.sysuhcp.com/"
COUNTS: dict[str, int | None] = {"train": 30462, "val": 10000, "test": 10000}
TREE = """\
DIR/                                   each folder may hold itself once more, as unpacked
  TrainVal_images/
    train_id.txt  val_id.txt           30462 and 10000 ids
    train_images/ID.jpg                30462 images
    val_images/ID.jpg                  10000 images
  TrainVal_parsing_annotations/
    train_segmentations/ID.png         30462 index PNGs (0-19)
    val_segmentations/ID.png           10000
  Testing_images/                      needed only for split test
    test_id.txt                        10000 ids
    testing_images/ID.jpg              10000 images; no labels"""


def lip(source: Path) -> Benchmark:
    """LIP: train 30462, val 10000, test 10000 images (test has no labels); 20 classes with background.

    Left and right are the person's own: an image flipped left to right needs the classes of `flip_pairs` exchanged.
    """
    table = lookup_table({**{k: k for k in range(len(NAMES))}, IGNORE: IGNORE})
    read, index = partial(read_png_pair, table=table), partial(index_lip, Path(source))
    return Benchmark(
        "lip", tuple(NAMES), tuple(NAMES.values()), dict(COUNTS), TREE, index, read, HOME, flip_pairs=FLIP_PAIRS
    )


def index_lip(source: Path, split: str) -> list[Item]:
    """The persons of a split, in the list's order.

    Raises:
        DataError: an unknown split, or missing files.
    """
    check_split(split, COUNTS, "lip")
    check_folder(source)
    source = source.absolute()
    folder, images = ("Testing_images", "testing_images") if split == "test" else ("TrainVal_images", f"{split}_images")
    listed, at = _inside(source, folder, f"{split}_id.txt"), _inside(source, folder, images)
    masks = None if split == "test" else _inside(source, "TrainVal_parsing_annotations", f"{split}_segmentations")
    with absent_unless(listed, at, *([masks] if masks else [])):
        ids = read_list(listed, _id, TREE)
    items = [Item(key, str(at / f"{key}.jpg"), str(masks / f"{key}.png") if masks else None) for key in ids]
    check_items(items, TREE)
    return items


def _inside(source: Path, folder: str, name: str) -> Path:
    """DIR/FOLDER/NAME, or the same one or two FOLDERs deeper; where none of them exists, the first, for the message."""
    places = [source.joinpath(*[folder] * depth, name) for depth in (1, 2, 3)]
    return next((path for path in places if path.exists()), places[0])


def _id(line: str) -> str:
    """The id on a line, which may have the image's suffix."""
    return line.removesuffix(".jpg")
