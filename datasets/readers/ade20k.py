"""ADE20K's 150 classes (Zhou et al., CVPR 2017) in the release of the scene parsing challenge of 2016."""

from functools import partial
from pathlib import Path

from datasets.readers.labels import absent_unless, check_present, check_split, lookup_table, read_png_pair
from datasets.readers.tables import check_found, first_folder, paired, unlabelled
from datasets.sample import IGNORE, Benchmark, Item

# The first of the names that objectInfo150.txt gives to each class.
CLASSES = (
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass", "cabinet",
    "sidewalk", "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair", "car", "water",
    "painting", "sofa", "shelf", "house", "sea", "mirror", "rug", "field", "armchair", "seat", "fence", "desk",
    "rock", "wardrobe", "lamp", "bathtub", "railing", "cushion", "base", "box", "column", "signboard",
    "chest of drawers", "counter", "sand", "sink", "skyscraper", "fireplace", "refrigerator", "grandstand", "path",
    "stairs", "runway", "case", "pool table", "pillow", "screen door", "stairway", "river", "bridge", "bookcase",
    "blind", "coffee table", "toilet", "flower", "book", "hill", "bench", "countertop", "stove", "palm",
    "kitchen island", "computer", "swivel chair", "boat", "bar", "arcade machine", "hovel", "bus", "towel", "light",
    "truck", "tower", "chandelier", "awning", "streetlight", "booth", "television", "airplane", "dirt track",
    "apparel", "pole", "land", "bannister", "escalator", "ottoman", "bottle", "buffet", "poster", "stage", "van",
    "ship", "fountain", "conveyer belt", "canopy", "washer", "plaything", "swimming pool", "stool", "barrel",
    "basket", "waterfall", "tent", "bag", "minibike", "cradle", "oven", "ball", "food", "step", "tank",
    "trade name", "microwave", "pot", "animal", "bicycle", "lake", "dishwasher", "screen", "blanket", "sculpture",
    "hood", "sconce", "vase", "traffic light", "tray", "ashcan", "fan", "pier", "crt screen", "plate", "monitor",
    "bulletin board", "shower", "radiator", "glass", "clock", "flag",
)  # fmt: skip

# color150.mat of the challenge's development kit; road and skyscraper share one colour there.
PALETTE = (
    (120, 120, 120), (180, 120, 120), (6, 230, 230), (80, 50, 50), (4, 200, 3), (120, 120, 80), (140, 140, 140),
    (204, 5, 255), (230, 230, 230), (4, 250, 7), (224, 5, 255), (235, 255, 7), (150, 5, 61), (120, 120, 70),
    (8, 255, 51), (255, 6, 82), (143, 255, 140), (204, 255, 4), (255, 51, 7), (204, 70, 3), (0, 102, 200),
    (61, 230, 250), (255, 6, 51), (11, 102, 255), (255, 7, 71), (255, 9, 224), (9, 7, 230), (220, 220, 220),
    (255, 9, 92), (112, 9, 255), (8, 255, 214), (7, 255, 224), (255, 184, 6), (10, 255, 71), (255, 41, 10),
    (7, 255, 255), (224, 255, 8), (102, 8, 255), (255, 61, 6), (255, 194, 7), (255, 122, 8), (0, 255, 20),
    (255, 8, 41), (255, 5, 153), (6, 51, 255), (235, 12, 255), (160, 150, 20), (0, 163, 255), (140, 140, 140),
    (250, 10, 15), (20, 255, 0), (31, 255, 0), (255, 31, 0), (255, 224, 0), (153, 255, 0), (0, 0, 255),
    (255, 71, 0), (0, 235, 255), (0, 173, 255), (31, 0, 255), (11, 200, 200), (255, 82, 0), (0, 255, 245),
    (0, 61, 255), (0, 255, 112), (0, 255, 133), (255, 0, 0), (255, 163, 0), (255, 102, 0), (194, 255, 0),
    (0, 143, 255), (51, 255, 0), (0, 82, 255), (0, 255, 41), (0, 255, 173), (10, 0, 255), (173, 255, 0),
    (0, 255, 153), (255, 92, 0), (255, 0, 255), (255, 0, 245), (255, 0, 102), (255, 173, 0), (255, 0, 20),
    (255, 184, 184), (0, 31, 255), (0, 255, 61), (0, 71, 255), (255, 0, 204), (0, 255, 194), (0, 255, 82),
    (0, 10, 255), (0, 112, 255), (51, 0, 255), (0, 194, 255), (0, 122, 255), (0, 255, 163), (255, 153, 0),
    (0, 255, 10), (255, 112, 0), (143, 255, 0), (82, 0, 255), (163, 255, 0), (255, 235, 0), (8, 184, 170),
    (133, 0, 255), (0, 255, 92), (184, 0, 255), (255, 0, 31), (0, 184, 255), (0, 214, 255), (255, 0, 112),
    (92, 255, 0), (0, 224, 255), (112, 224, 255), (70, 184, 160), (163, 0, 255), (153, 0, 255), (71, 255, 0),
    (255, 0, 163), (255, 204, 0), (255, 0, 143), (0, 255, 235), (133, 255, 0), (255, 0, 235), (245, 0, 255),
    (255, 0, 122), (255, 245, 0), (10, 190, 212), (214, 255, 0), (0, 204, 255), (20, 0, 255), (255, 255, 0),
    (0, 153, 255), (0, 41, 255), (0, 255, 204), (41, 0, 255), (41, 255, 0), (173, 0, 255), (0, 245, 255),
    (71, 0, 255), (122, 0, 255), (0, 255, 184), (0, 92, 255), (184, 255, 0), (0, 133, 255), (255, 214, 0),
    (25, 194, 194), (102, 255, 0), (92, 0, 255),
)  # fmt: skip

HOME = "http://sceneparsing.csail.mit.edu"
OTHER = 0
COUNTS: dict[str, int | None] = {"train": 20210, "val": 2000, "test": 3352}
FOLDERS = {"train": "training", "val": "validation"}
TREE = """\
DIR/                                   DIR may also be ADEChallengeData2016 itself
  ADEChallengeData2016/
    images/training/ADE_train_*.jpg    20210 images
    images/validation/ADE_val_*.jpg    2000
    annotations/training/*.png         20210 grey PNGs (1-150, 0 = none of the 150)
    annotations/validation/*.png       2000
    images/testing/ADE_test_*.jpg      3352 without labels; needed only for split test
  release_test/testing/                or these, as their own release unpacks them"""


def ade20k(source: Path) -> Benchmark:
    """ADE20K: train 20,210, val 2,000 and test 3,352 images, the last without labels; 150 classes.

    Stored values 1..150 become 0..149; 0, which is none of the 150, becomes 255. Some images are grey JPEGs.
    """
    table = lookup_table({OTHER: IGNORE, **{k + 1: k for k in range(len(CLASSES))}})
    read, index = partial(read_png_pair, table=table), partial(index_ade20k, Path(source))
    return Benchmark("ade20k", CLASSES, PALETTE, dict(COUNTS), TREE, index, read, HOME)


def index_ade20k(source: Path, split: str) -> list[Item]:
    """The images of a split in order of their names.

    Raises:
        DataError: an unknown split, or missing files.
    """
    check_split(split, COUNTS, "ade20k")
    roots = [source / "ADEChallengeData2016", source]
    if split == "test":
        places = [*(root / "images/testing" for root in roots), source / "release_test/testing", source / "testing"]
        with absent_unless(*places):
            images = first_folder(places, TREE)
        return check_found(unlabelled(images, ".jpg"), images, ".jpg", TREE)
    root = first_folder([root / "images" for root in roots], TREE).parent
    images, masks = (root / kind / FOLDERS[split] for kind in ("images", "annotations"))
    with absent_unless(images, masks):
        check_present([images, masks], TREE)
    return check_found(paired(images, masks, (".jpg", ".png"), TREE), images, ".jpg", TREE)
