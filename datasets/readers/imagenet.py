"""ImageNet of ILSVRC 2012 (Russakovsky et al., IJCV 2015, arXiv:1409.0575): 1000 kinds of objects, one per image."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from pycocotools import mask as rle_api

from datasets.readers.files import check_folder, images_in, of_file
from datasets.readers.imagenet_lists import is_wnid, names_of, release_in, synsets_in, val_wnids
from datasets.readers.imagenet_tars import files_in_tar, tars_in_tar
from datasets.readers.labels import absent_unless, check_present, check_split, colour_map, image_of
from datasets.sample import DAMAGED, Benchmark, DataError, Item, Sample, Segment
from datasets.text import named

HOME = "https://image-net.org/challenges/LSVRC/2012/"
COUNTS: dict[str, int | None] = {"train": 1281167, "val": 50000}
TREE = """\
DIR/                                   or DIR/ILSVRC/Data/CLS-LOC/ for the two folders
  train/WNID/WNID_NUMBER.JPEG          1281167 images in 1000 folders; or ILSVRC2012_img_train.tar, as published
  val/WNID/ILSVRC2012_val_ID.JPEG      50000 images in 1000 folders
  val/ILSVRC2012_val_ID.JPEG           or in none, or in ILSVRC2012_img_val.tar: then one of these has their classes
    LOC_val_solution.csv
    ILSVRC2012_devkit_t12/  or its .tar.gz
  names of the classes, if one of these is there: LOC_synset_mapping.txt, synset_words.txt, the devkit; else WNIDs"""


@dataclass(frozen=True)
class Found:
    """An image: its name without suffix, its file, and its class if its folder says it.

    `offset` and `bytes` are those of the image within a file that is an archive, else 0.
    """

    stem: str
    path: str
    wnid: str
    offset: int = 0
    bytes: int = 0


def imagenet(source: Path) -> Benchmark:
    """ImageNet: train 1281167, val 50000 images; 1000 classes, in the order of their WNIDs, as torchvision has them.

    Rows have no mask. The class of an image is its one segment, which is the whole image.
    """
    names = names_of(synsets_in(release_in(Path(source))))
    index = partial(index_imagenet, Path(source))
    return Benchmark("imagenet", names, colour_map(len(names)), dict(COUNTS), TREE, index, read_classified, HOME)


def index_imagenet(source: Path, split: str) -> list[Item]:
    """The images in order of their names; labels are (class, offset in the archive).

    Raises:
        DataError: an unknown split, nothing of it, images whose class nothing says, or an unknown class.
    """
    check_split(split, COUNTS, "imagenet")
    check_folder(source)
    root = release_in(source.absolute())
    folder, archive = root / split, root / f"ILSVRC2012_img_{split}.tar"
    with absent_unless(folder, archive):
        if not archive.is_file():
            check_present([folder], TREE)
    found = list(in_folders(folder) if folder.is_dir() else in_archive(archive))
    if not found:
        raise DataError(f"{folder}: no image in it. Expected is this folder:\n{TREE}")
    if any(not one.wnid for one in found):
        found = classified(root, found)
    numbers = {wnid: number for number, wnid in enumerate(synsets_in(root))}
    if strange := sorted({one.wnid for one in found} - set(numbers)):
        raise DataError(f"{folder}: {len(strange)} class(es) that are not among the {len(numbers)} of train, or of the "
                        f"list of classes: {named(strange)}. Correct the list, or take them away")  # fmt: skip
    found.sort(key=lambda one: one.stem)
    return [Item(one.stem, one.path, (numbers[one.wnid], one.offset), one.bytes) for one in found]


def in_folders(folder: Path) -> Iterator[Found]:
    """The images of a folder and of its folders, whose names are classes.

    Raises:
        DataError: a folder's name is no class.
    """
    with os.scandir(folder) as entries:
        inside = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if strange := [name for name in inside if not is_wnid(name)]:
        raise DataError(f"{folder}: folders that are no class of ImageNet: {named(strange)}; allowed are names such as "
                        "n01440764. Take them away; your own classes need a benchmark of their own")  # fmt: skip
    for wnid in inside:
        yield from (Found(path.stem, str(path), wnid) for path in images_in(folder / wnid))
    if not inside:
        yield from (Found(path.stem, str(path), "") for path in images_in(folder))


def in_archive(archive: Path) -> Iterator[Found]:
    """The images of the archive of a split, as published: train's holds an archive for each class.

    Raises:
        DataError: the archive is damaged.
    """
    split_in_classes = archive.name == "ILSVRC2012_img_train.tar"
    for member in (tars_in_tar if split_in_classes else files_in_tar)(archive):
        yield Found(Path(member.name).stem, str(archive), Path(member.inside).stem, member.offset, member.bytes)


def classified(root: Path, found: Iterable[Found]) -> list[Found]:
    """The images of val with the classes that a list of the release says.

    Raises:
        DataError: no such list, or it lacks an image.
    """
    known, found = val_wnids(root), list(found)
    if not known:
        raise DataError(f"{found[0].path}: the images of val are in no folders of classes, and nothing else says their "
                        f"classes. Add one of the lists, or put them into folders:\n{TREE}")  # fmt: skip
    if lost := [one.stem for one in found if one.stem not in known]:
        raise DataError(f"{len(lost)} images of val are not in the list of their classes: {named(lost)}; list and "
                        "images must be of one release. Fetch both again")  # fmt: skip
    return [Found(one.stem, one.path, known[one.stem], one.offset, one.bytes) for one in found]


def read_classified(item: Item) -> Sample:
    """Read an image and its class, the number of its one segment.

    Raises:
        DataError: a missing or damaged file.
    """
    label: tuple[int, int] = item.label  # type: ignore[assignment]
    number, offset = label
    with of_file(item.image if not item.bytes else f"{item.image}, {item.id}"):
        try:
            with open(item.image, "rb") as file:
                file.seek(offset)
                data = file.read(item.bytes or -1)
        except OSError as error:
            raise DataError(f"{error}", DAMAGED) from error
        data, (height, width) = image_of(data)
    rle = rle_api.encode(np.ones((height, width), np.uint8, order="F"))["counts"]
    return Sample(item.id, data, None, (Segment(number, False, (0.0, 0.0, float(width), float(height)), rle),))
