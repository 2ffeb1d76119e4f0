"""CamVid (Brostow et al., ECCV 2008) as first released: 701 frames of 960x720 pixels, masks in 32 colours."""

import re
from functools import partial
from pathlib import Path

from datasets.readers.camvid import COUNTS, NAMES
from datasets.readers.colours import Colour, read_colour_png, remap_colours
from datasets.readers.files import check_folder, images_in
from datasets.readers.labels import check_items, check_present, check_split, read_list, read_pair
from datasets.sample import ABSENT, IGNORE, Benchmark, DataError, Item, Sample

COLOURS: dict[str, Colour] = {
    "Animal": (64, 128, 64), "Archway": (192, 0, 128), "Bicyclist": (0, 128, 192), "Bridge": (0, 128, 64),
    "Building": (128, 0, 0), "Car": (64, 0, 128), "CartLuggagePram": (64, 0, 192), "Child": (192, 128, 64),
    "Column_Pole": (192, 192, 128), "Fence": (64, 64, 128), "LaneMkgsDriv": (128, 0, 192),
    "LaneMkgsNonDriv": (192, 0, 64), "Misc_Text": (128, 128, 64), "MotorcycleScooter": (192, 0, 192),
    "OtherMoving": (128, 64, 64), "ParkingBlock": (64, 192, 128), "Pedestrian": (64, 64, 0),
    "Road": (128, 64, 128), "RoadShoulder": (128, 128, 192), "Sidewalk": (0, 0, 192),
    "SignSymbol": (192, 128, 128), "Sky": (128, 128, 128), "SUVPickupTruck": (64, 128, 192),
    "TrafficCone": (0, 0, 64), "TrafficLight": (0, 64, 64), "Train": (192, 64, 128), "Tree": (128, 128, 0),
    "Truck_Bus": (192, 128, 192), "Tunnel": (64, 0, 64), "VegetationMisc": (192, 192, 0), "Void": (0, 0, 0),
    "Wall": (64, 192, 0),
}  # fmt: skip
"""The release's label_colors.txt."""

GROUPS = {
    "sky": ("Sky",),
    "building": ("Archway", "Bridge", "Building", "Tunnel", "Wall"),
    "pole": ("Column_Pole", "TrafficCone"),
    "road": ("LaneMkgsDriv", "LaneMkgsNonDriv", "Road"),
    "pavement": ("ParkingBlock", "RoadShoulder", "Sidewalk"),
    "tree": ("Tree", "VegetationMisc"),
    "signsymbol": ("Misc_Text", "SignSymbol", "TrafficLight"),
    "fence": ("Fence",),
    "car": ("Car", "OtherMoving", "SUVPickupTruck", "Train", "Truck_Bus"),
    "pedestrian": ("Animal", "CartLuggagePram", "Child", "Pedestrian"),
    "bicyclist": ("Bicyclist", "MotorcycleScooter"),
}
"""SegNet's 11 classes as the code of MATLAB and of others defines them: the shoulder is pavement; Void becomes 255."""

CLASS_OF = {COLOURS[name]: number for number, group in enumerate(GROUPS.values()) for name in group}
FAULTY = "Seq05VD_f02610"
"""The frame whose released mask has 175 pixels in colours between those of two classes; they become 255."""

HOME = "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/"
STILLS = "701_StillsRaw_full"
FOLDERS = {
    STILLS: "LabeledApproved_full",
    "train": "train_labels", "val": "val_labels", "test": "test_labels",
}  # fmt: skip
TREE = """\
DIR/
  701_StillsRaw_full/FRAME.png         701 images of 960x720
  LabeledApproved_full/FRAME_L.png     701 RGB masks (its archive has no folder: unzip -d LabeledApproved_full)
  train.txt  val.txt  test.txt         optional: 367, 101, 233 lines, a frame or SegNet's pair of paths on each;
                                       without them, SegNet's split by the frames' names
                                       or, for the frames, train/ + train_labels/, val/ + val_labels/, test/ +
                                       test_labels/, whose own split (369, 100, 232) is not used"""


def camvid_full(source: Path) -> Benchmark:
    """CamVid at 960x720: train 367, val 101, test 233 images; 11 classes in the order of `camvid`; Void is 255."""
    read = partial(read_full, classes=CLASS_OF | {COLOURS["Void"]: IGNORE})
    index = partial(index_full, Path(source))
    return Benchmark("camvid_full", tuple(NAMES), tuple(NAMES.values()), dict(COUNTS), TREE, index, read, HOME)


def index_full(source: Path, split: str) -> list[Item]:
    """The frames of a split, in the list's order or by name.

    Raises:
        DataError: an unknown split, no images, a frame of no known sequence, or missing files.
    """
    check_split(split, COUNTS, "camvid_full")
    check_folder(source)
    source = source.absolute()
    frames = _frames(source)
    if any((source / f"{name}.txt").is_file() for name in COUNTS):
        chosen = read_list(source / f"{split}.txt", _frame, TREE)
    else:
        chosen = [frame for frame in sorted(frames) if segnet_split(frame) == split]
    if not chosen:
        none = f"{source}: none of its {len(frames)} frames belongs to split {split}. Expected is:\n{TREE}"
        raise DataError(none, ABSENT if frames else "")
    check_present([source / STILLS / f"{frame}.png" for frame in chosen if frame not in frames], TREE)
    items = [Item(f, str(frames[f]), str(frames[f].parents[1] / FOLDERS[frames[f].parent.name] / f"{f}_L.png"))
             for f in chosen]  # fmt: skip
    check_items(items, TREE)
    return items


def segnet_split(frame: str) -> str:
    """SegNet's split of a frame, by the frame's sequence and number, as in the lists of SegNet's release.

    Raises:
        DataError: the name is none of CamVid's.
    """
    match = re.fullmatch(r"(0001TP|0006R0|0016E5|Seq05VD)_f?(\d+)", frame)
    if not match:
        raise DataError(
            f"{frame}: no frame of CamVid; those begin with 0001TP_, 0006R0_, 0016E5_ or Seq05VD_. Remove the file"
        )
    sequence, number = match[1], int(match[2])
    if sequence == "0001TP":
        return "train" if number <= 8520 else "test"
    if sequence == "0016E5":
        return "val" if 7959 <= number <= 8159 else "train"  # the part that was labelled 15 times a second
    return "train" if sequence == "0006R0" else "test"


def read_full(item: Item, classes: dict[Colour, int]) -> Sample:
    """Read a frame and its mask of colours.

    Raises:
        DataError: a damaged file, a colour outside the table, or two sizes.
    """
    path = str(item.label)
    others = IGNORE if item.id == FAULTY else None
    return read_pair(item, lambda: remap_colours(read_colour_png(path), classes, path, others))


def _frames(source: Path) -> dict[str, Path]:
    present = [source / name for name in FOLDERS if (source / name).is_dir()]
    if not present:
        check_present([source / STILLS], TREE)
    return {path.stem: path for folder in present for path in images_in(folder, (".png",))}


def _frame(line: str) -> str:
    """The frame on a line: a name, or SegNet's path of the image and path of its mask."""
    return Path(line.split()[0].replace("\\", "/")).stem
