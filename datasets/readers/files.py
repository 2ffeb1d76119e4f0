"""Finding a release's files: junk is skipped; for an archive or a wrong case of letters the message names the cure."""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datasets.sample import DAMAGED, DataError

JUNK = ("Thumbs.db", "desktop.ini", "__MACOSX")
IMAGES = (".jpg", ".jpeg", ".png")
"""Suffixes of the images of published releases."""
UNPACK = {
    ".zip": "unzip {file} -d {folder}", ".tar": "tar -xf {file} -C {folder}", ".gz": "tar -xf {file} -C {folder}",
    ".tgz": "tar -xf {file} -C {folder}", ".bz2": "tar -xf {file} -C {folder}", ".xz": "tar -xf {file} -C {folder}",
    ".7z": "7z x {file} -o{folder}", ".rar": "unrar x {file} {folder}/",
}  # fmt: skip
"""Suffix of an archive -> the command that unpacks it."""
READ_PACKED = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz")
"""Archives of releases whose readers read them as they are."""


@contextmanager
def naming_file(path: str | Path, fault: str, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """In the body, turn the errors of reading a file into one that names the file.

    Args:
        path: the file.
        fault: what is wrong with the file where one of the errors occurs, for the message.
        errors: what reading a damaged file raises; a DataError passes as it is.

    Raises:
        DataError: one of the errors occurred.
    """
    try:
        yield
    except DataError:
        raise
    except errors as error:
        told = f"{fault} ({type(error).__name__}: {error})"
        raise DataError(f"{path}{leads_nowhere(path)}: {told}; fetch the file again", DAMAGED) from error


@contextmanager
def of_file(path: str | Path) -> Iterator[None]:
    """In the body, put the file's name before the message of a DataError, which keeps its kind.

    Raises:
        DataError: what the body raises.
    """
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}{leads_nowhere(path)}: {error}", error.kind) from error


def leads_nowhere(path: str | Path) -> str:
    """What to say behind the path of a link whose target is gone; "" for all other paths."""
    if not os.path.islink(path) or os.path.exists(path):
        return ""
    return f" (a link to {os.readlink(path)}, which is not there)"


def names_in(folder: Path) -> list[str]:
    """The sorted names in a folder, without what file managers leave there (.DS_Store, ._NAME, Thumbs.db)."""
    return sorted(name for name in os.listdir(folder) if not name.startswith(".") and name not in JUNK)


def images_in(folder: Path, suffixes: tuple[str, ...] = IMAGES) -> list[Path]:
    """The images of a folder in order of their names; .JPG counts as .jpg."""
    return [folder / name for name in names_in(folder) if Path(name).suffix.lower() in suffixes]


def check_folder(source: Path) -> None:
    """Refuse a source that is not an unpacked release at all.

    Raises:
        DataError: nothing is there, or a file or archive, an empty folder, or a folder that holds only archives.
    """
    source = Path(source)
    if source.is_file():
        cure = unpack(source) if is_archive(source.name) else "Give the folder of the unpacked release"
        raise DataError(f"{source}: a file where a folder is expected. {cure}")
    if not source.is_dir():
        cure = instead(source) or "Correct the path"
        raise DataError(f"{source}{leads_nowhere(source)}: no such folder. {cure}")
    names = names_in(source)
    if not names:
        raise DataError(f"{source}: the folder is empty. Give the folder of the unpacked release")
    if all(map(is_archive, names)):
        raise DataError(f"{source}: holds only {', '.join(names)}. {unpack(source / names[0])}")


def instead(missing: str | Path) -> str:
    """What is there instead of a missing path, and the cure: its name in another case, an archive, a link; else ""."""
    path = Path(missing).absolute()
    for part in (path, *path.parents):
        if gone := leads_nowhere(part):
            return f"{part}{gone}: restore its target, or replace the link"
        if part.is_file() and part != path and is_archive(part.name):
            return unpack(part)
        if part.parent.is_dir():
            return _instead_in(part.parent, part.name, is_last=part == path)
    return ""


def is_archive(name: str) -> bool:
    """Whether a name is that of an archive that is to be unpacked."""
    return Path(name).suffix.lower() in UNPACK and name not in READ_PACKED


def unpack(archive: Path) -> str:
    """The sentence that tells how to unpack an archive into its own folder."""
    command = UNPACK[archive.suffix.lower()]
    where = {"file": shlex.quote(str(archive)), "folder": shlex.quote(str(archive.parent))}
    return f"{archive.name} is an archive; unpack it: {command.format(**where)}"


def _instead_in(folder: Path, name: str, is_last: bool) -> str:
    names = names_in(folder)
    if other := [n for n in names if n.lower() == name.lower() and n != name]:
        return f"{folder / other[0]} is there: upper and lower case count, rename it to {name}"
    archives = [n for n in names if is_archive(n)]
    # a single missing file is not still in an archive; a missing folder may be
    if archives and (not is_last or len(archives) == len(names)):
        alike = [n for n in archives if n.lower().startswith(name.lower())]
        return unpack(folder / (alike or archives)[0])
    return ""
