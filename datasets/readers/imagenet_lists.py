"""ImageNet's lists: which classes there are, what they are called, and the classes of the images of val."""

import csv
import io
import re
import tarfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from datasets.readers.files import naming_file
from datasets.readers.imagenet_tars import ERRORS, files_in_tar
from datasets.sample import DataError
from datasets.text import decode_text, lines_of, read_text

DEEPER = ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
"""Where the folders of the splits may be, in Kaggle's layout too."""
NAMES = ("LOC_synset_mapping.txt", "synset_words.txt")
"""Lists of `WNID word, word, ...`."""
SOLUTION = "LOC_val_solution.csv"
DEVKIT = "ILSVRC2012_devkit_t12"
META, TRUTH = f"{DEVKIT}/data/meta.mat", f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt"


def is_wnid(name: str) -> bool:
    """Whether a name is a WordNet id of a noun."""
    return re.fullmatch(r"n\d{8}", name) is not None


def release_in(source: Path) -> Path:
    """The folder that holds the splits."""
    places = [source / deeper for deeper in DEEPER]
    return next((place for place in places if (place / "train").is_dir() or (place / "val").is_dir()), source)


def synsets_in(root: Path) -> dict[str, str]:
    """WNID -> words, in the order of the WNIDs: of a list of the release, else as train's folders or archives say it.

    Args:
        root: from `release_in`.

    Raises:
        DataError: a list, or the archive, is damaged.
    """
    for path in (place / name for place in around(root) for name in NAMES):
        if path.is_file():
            return dict(sorted(synset_line(line, path) for line in lines_of(read_text(path))))
    if (meta := devkit_file(root, META)) is not None:
        return dict(sorted((wnid, words) for wnid, words in devkit_synsets(meta).values()))
    if (archive := root / "ILSVRC2012_img_train.tar").is_file() and not (root / "train").is_dir():
        wnids = [Path(member.name).stem for member in files_in_tar(archive)]
    else:
        folder = next((root / split for split in ("train", "val") if (root / split).is_dir()), None)
        wnids = [] if folder is None else [path.name for path in folder.iterdir() if path.is_dir()]
    return {wnid: wnid for wnid in sorted(wnids) if is_wnid(wnid)}


def around(root: Path) -> list[Path]:
    """Where lists may be: beside the splits, or where Kaggle's layout begins."""
    return [root, *root.parents[:3]] if root.name == "CLS-LOC" else [root]


def synset_line(line: str, path: Path) -> tuple[str, str]:
    """WNID and words of a line.

    Raises:
        DataError: it has none.
    """
    wnid, _, words = line.partition(" ")
    if not is_wnid(wnid) or not words.strip():
        raise DataError(f"{path}: the line {line!r} is not of the form 'n01440764 tench, Tinca tinca'; fetch it again")
    return wnid, words.strip()


def names_of(synsets: Mapping[str, str]) -> tuple[str, ...]:
    """A name for each class: its first word, with its WNID where two classes have it (crane, maillot)."""
    first = {wnid: words.split(",")[0].strip() for wnid, words in synsets.items()}
    often = Counter(first.values())
    return tuple(name if often[name] == 1 else f"{name} ({wnid})" for wnid, name in first.items())


def devkit_file(root: Path, name: str) -> bytes | None:
    """A file of the development kit, unpacked or not; None where there is none.

    Raises:
        DataError: the kit's archive is damaged, or lacks the file.
    """
    for place in around(root):
        if (place / name).is_file():
            return (place / name).read_bytes()
        packed = place / f"{DEVKIT}.tar.gz"
        if packed.is_file():
            with naming_file(packed, "the archive does not read", (*ERRORS, KeyError)), tarfile.open(packed) as archive:
                inside = archive.extractfile(name)
                return b"" if inside is None else inside.read()
    return None


def devkit_synsets(meta: bytes) -> dict[int, tuple[str, str]]:
    """ILSVRC's own number of a class, which is not its place among the WNIDs -> WNID and words.

    Args:
        meta: the kit's meta.mat, which also has the upper categories.

    Raises:
        DataError: it does not read.
    """
    errors = (MatReadError, ValueError, KeyError, TypeError, OSError)
    with naming_file(META, "not the kit's list of classes", errors):
        entries: Any = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        leaves = entries[entries["num_children"].astype(int) == 0]
        columns = (leaves[key] for key in ("ILSVRC2012_ID", "WNID", "words"))
        return {int(number): (str(wnid), str(words)) for number, wnid, words in zip(*columns, strict=True)}


def val_wnids(root: Path) -> dict[str, str]:
    """The class of each image of val by its name: of Kaggle's list, or of the kit's; empty where neither is there.

    Args:
        root: from `release_in`.

    Raises:
        DataError: a list is damaged.
    """
    for path in (place / SOLUTION for place in around(root)):
        if path.is_file():
            with naming_file(path, "not the list of val's classes", (KeyError, IndexError, csv.Error)):
                rows = csv.DictReader(lines_of(read_text(path)))
                return {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}
    truth, meta = devkit_file(root, TRUTH), devkit_file(root, META)
    if truth is None or meta is None:
        return {}
    wnids = {number: wnid for number, (wnid, _) in devkit_synsets(meta).items()}
    with naming_file(TRUTH, "not the kit's list of val's classes", (KeyError, ValueError)):
        numbers = [int(line) for line in lines_of(decode_text(truth))]
        return {f"ILSVRC2012_val_{place:08d}": wnids[number] for place, number in enumerate(numbers, 1)}
