"""The files of the user's own folder, and which image and which mask belong together."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasets.readers.files import JUNK, leads_nowhere
from datasets.sample import DataError
from datasets.text import named, same_form

SPLITS = ("train", "val", "test")
SPLIT_OF = {
    **{name: name for name in SPLITS}, "training": "train", "valid": "val", "validation": "val", "dev": "val",
    "testing": "test",
}  # fmt: skip
"""What lists, folders and rows may be called -> the split."""


@dataclass(frozen=True)
class Kind:
    """The images of a folder, or its masks.

    Args:
        at: (split or "", name without suffix, in one Unicode form) -> path in the folder.
        folders: the splits that have a folder of their own -> that folder.
        others: files of other suffixes.
    """

    at: dict[tuple[str, str], str]
    folders: dict[str, str]
    others: list[str] = field(default_factory=list)


def files_in(source: Path) -> list[str]:
    """All files below a folder, sorted, as paths in it; without hidden ones and what file managers leave.

    Raises:
        DataError: a link leads nowhere.
    """
    found = sorted(_walk(str(source), "", set()))
    if gone := [path + told for path in found if (told := leads_nowhere(source / path))]:
        raise DataError(f"{source}: links whose target is not there: {named(gone)}. Restore the "
                        "targets, or remove the links")  # fmt: skip
    return found


def _walk(source: str, folder: str, above: set[tuple[int, int]]) -> Iterator[str]:
    """Files below `folder`; `above` are the folders on the way, for a link that leads back to one."""
    here = os.stat(os.path.join(source, folder))
    if (key := (here.st_dev, here.st_ino)) in above:
        return
    with os.scandir(os.path.join(source, folder)) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name in JUNK:
                continue
            path = f"{folder}{entry.name}"
            if entry.is_dir():
                yield from _walk(source, f"{path}/", above | {key})
            else:
                yield path


def kind_of(source: Path, files: Sequence[str], name: str, suffixes: Sequence[str]) -> Kind:
    """The files of a kind.

    Args:
        source: the folder.
        files: all of its files.
        name: images or masks.
        suffixes: those of the kind.

    Raises:
        DataError: two folders of one split, or two files that share a name.
    """
    folders = split_folders(source, name)
    splits = {folder: split for split, folder in folders.items()}
    kind = Kind({}, folders)
    for path in files:
        if not path.startswith(f"{name}/"):
            continue
        first, _, rest = (inside := path.removeprefix(f"{name}/")).partition("/")
        split = splits.get(first, "") if rest else ""
        stem, suffix = os.path.splitext(rest if split else inside)
        if suffix.lower() not in suffixes:
            kind.others.append(path)
            continue
        if (other := kind.at.setdefault((split, same_form(stem)), path)) != path:
            raise DataError(f"{source / other} and {path} share one stem, and so one mask; rename one, or remove it")
    return kind


def split_folders(source: Path, name: str) -> dict[str, str]:
    """The splits that have a folder in `source/name` -> the folder's name there.

    Raises:
        DataError: two folders belong to one split.
    """
    found: dict[str, str] = {}
    folder = source / name
    for inside in sorted(os.listdir(folder)) if folder.is_dir() else []:
        split = SPLIT_OF.get(inside.lower())
        if split and (folder / inside).is_dir() and found.setdefault(split, inside) != inside:
            raise DataError(f"{folder}: {found[split]} and {inside} both are split {split}; make one folder of them")
    return {split: found[split] for split in SPLITS if split in found}


def lists_in(source: Path) -> dict[str, Path]:
    """The splits that have a list, such as `val.txt` or `valid.txt` -> the list.

    Raises:
        DataError: two lists belong to one split.
    """
    found: dict[str, Path] = {}
    for name in sorted(os.listdir(source)) if source.is_dir() else []:
        stem, suffix = os.path.splitext(name)
        split = SPLIT_OF.get(stem.lower()) if suffix.lower() == ".txt" else None
        if split and found.setdefault(split, source / name) != source / name:
            raise DataError(f"{source}: {found[split].name} and {name} both list split {split}; make one list of them")
    return {split: found[split] for split in SPLITS if split in found}


class Listed:
    """Finds the images that lines of lists name: by a stem, a file's name, or a path, in any Unicode form.

    Args:
        images: the images.
    """

    def __init__(self, images: Kind, suffixes: Sequence[str]) -> None:
        self.suffixes = suffixes
        self.by_path: dict[str, tuple[str, str]] = {}
        self.by_stem: dict[str, list[tuple[str, str]]] = {}
        for key, path in images.at.items():
            inside = same_form(os.path.splitext(path)[0])
            self.by_path |= {inside: key, inside.removeprefix("images/"): key}
            self.by_stem.setdefault(inside.rpartition("/")[2], []).append(key)

    def find(self, line: str, path: Path) -> tuple[str, tuple[str, str] | None]:
        """The id of a line, and the image's key; None where there is no such image.

        Args:
            line: of a list.
            path: of the list, for the message.

        Raises:
            DataError: several images have that name.
        """
        name = re.sub(r"^(\./)+", "", line.replace("\\", "/"))
        stem, suffix = os.path.splitext(name)
        stem = stem if suffix.lower() in self.suffixes else name
        for text in (line, stem, stem.removeprefix("images/")):
            if (key := self.by_path.get(same_form(text))) is not None:
                return text.removeprefix("images/"), key
        bare = stem.rpartition("/")[2]
        found = self.by_stem.get(same_form(bare), [])
        if len(found) > 1:
            raise DataError(f"{path}: {line!r} may be {named(key[1] for key in found)}; write its path below images/")
        return bare, found[0] if found else None


def path_in(source: Path, written: str, files: Mapping[str, str]) -> Path:
    """The path that a table names, found in either Unicode form.

    Args:
        source: the folder.
        written: a path in it.
        files: its files by their paths in one form.
    """
    path = written.replace("\\", "/")
    if (source / path).exists():
        return source / path
    return source / files.get(same_form(os.path.normpath(path)), path)
