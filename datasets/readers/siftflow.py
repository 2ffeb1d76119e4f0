"""SIFT Flow (Liu et al., CVPR 2009) in the release of Tighe and Lazebnik (ECCV 2010): 2,688 outdoor scenes."""

from functools import partial
from pathlib import Path, PureWindowsPath

import numpy as np
from scipy.io import loadmat

from datasets.readers.files import check_folder, images_in, naming_file
from datasets.readers.labels import (
    check_items,
    check_present,
    check_split,
    colour_map,
    lookup_table,
    read_list,
    read_pair,
    remap,
)
from datasets.readers.tables import MAT_ERRORS
from datasets.sample import IGNORE, Benchmark, DataError, Item, Sample

CLASSES = (
    "awning", "balcony", "bird", "boat", "bridge", "building", "bus", "car", "cow", "crosswalk", "desert", "door",
    "fence", "field", "grass", "moon", "mountain", "person", "plant", "pole", "river", "road", "rock", "sand", "sea",
    "sidewalk", "sign", "sky", "staircase", "streetlight", "sun", "tree", "window",
)  # fmt: skip
PALETTE = colour_map(len(CLASSES) + 1)[1:]
"""VOC's colours without its black; the release has no colours."""

SCENES = "spatial_envelope_256x256_static_8outdoorcategories"
BARE = ("highway_bost181", "street_urb506")
"""Scenes of train that nobody annotated; where the release has no .mat files for them, they are left out."""

HOME = "http://www.cs.unc.edu/~jtighe/Papers/ECCV10/"
COUNTS: dict[str, int | None] = {"train": 2488, "test": 200}
TREE = f"""\
DIR/                                   DIR may also hold it as SiftFlowDataset/
  Images/{SCENES}/
    SCENE.jpg                          2688 images of 256x256
  SemanticLabels/{SCENES}/
    SCENE.mat                          2688 masks: S (0 = unlabelled, 1-33), names
  TestSet1.txt                         200 lines FOLDER\\SCENE.jpg: split test (200 in the release, though
                                       RecoNet's paper writes 500); all other images are split train"""


def siftflow(source: Path) -> Benchmark:
    """SIFT Flow: train 2488, test 200 images of 256x256; 33 classes; unlabelled (0) becomes 255.

    RecoNet's paper (arXiv:2008.00490) writes of 500 test images; the release's list, which everybody scores on, has
    200. There is no split val. Cow, desert and moon do not occur in test; its scenes are taken as they are.
    """
    return Benchmark(
        "siftflow", CLASSES, PALETTE, dict(COUNTS), TREE, partial(index_siftflow, Path(source)), read_siftflow, HOME
    )


def index_siftflow(source: Path, split: str) -> list[Item]:
    """The scenes of a split: test in the list's order, train by name.

    Raises:
        DataError: an unknown split, or missing files.
    """
    check_split(split, COUNTS, "siftflow")
    check_folder(source)
    root = source / "SiftFlowDataset"
    root = (root if root.is_dir() else source).absolute()
    images, masks = root / "Images" / SCENES, root / "SemanticLabels" / SCENES
    check_present([images, masks], TREE)
    test = read_list(root / "TestSet1.txt", _scene, TREE)
    found = {path.stem: path for path in images_in(images, (".jpg",))}
    check_present([images / f"{scene}.jpg" for scene in test if scene not in found], TREE)
    bare = {scene for scene in BARE if not (masks / f"{scene}.mat").exists()}
    chosen = test if split == "test" else sorted(set(found) - set(test) - bare)
    items = [Item(scene, str(found[scene]), str(masks / f"{scene}.mat")) for scene in chosen]
    check_items(items, TREE)
    return items


def read_siftflow(item: Item) -> Sample:
    """Read a scene and its .mat; the file's own `names` give the class of each value.

    Raises:
        DataError: a damaged file, a value or name outside the 33, or two sizes.
    """
    path = str(item.label)
    return read_pair(item, lambda: read_scene_mask(path))


def read_scene_mask(path: str) -> np.ndarray:
    """The field S of a SIFT Flow file, as classes uint8 (H, W).

    Raises:
        DataError: the file is damaged, lacks a field, or holds a value or name outside the 33.
    """
    with naming_file(path, "no SIFT Flow mask, S and names do not read", MAT_ERRORS):
        content = loadmat(path, variable_names=["S", "names"])
        stored = np.asarray(content["S"])
        labels = stored.astype(np.uint8)
        names = [str(np.asarray(cell).item()) for cell in content["names"].reshape(-1)]
    if unknown := sorted(set(names) - set(CLASSES)):
        raise DataError(f"{path}: names a class {unknown[0]!r}; allowed are {', '.join(CLASSES)}. Fetch it again")
    if (labels != stored).any():
        wrong = stored[labels != stored][0]
        raise DataError(f"{path}: S holds {wrong}; allowed are whole numbers 0-33. Fetch it again")
    table = lookup_table({0: IGNORE} | {value: CLASSES.index(name) for value, name in enumerate(names, 1)})
    return remap(labels, table, path)


def _scene(line: str) -> str:
    """The scene on a line; the list is from Windows and separates folders by backslashes."""
    return PureWindowsPath(line).stem
