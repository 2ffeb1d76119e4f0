"""Where the images of ImageNet's archives are: they are read in place, so nothing need be unpacked."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets.readers.files import naming_file

ERRORS = (tarfile.TarError, OSError, EOFError)


@dataclass(frozen=True)
class Member:
    """A file within an archive: its name, first byte and size there, and the archive within that it is in, or ""."""

    name: str
    offset: int
    bytes: int
    inside: str = ""


def files_in_tar(path: Path) -> Iterator[Member]:
    """The files of an archive that is not compressed.

    Raises:
        DataError: it is damaged, or is none.
    """
    with naming_file(path, "the archive does not read", ERRORS), tarfile.open(path, "r:") as archive:
        for entry in archive:
            if entry.isfile():
                yield Member(entry.name, entry.offset_data, entry.size)


def tars_in_tar(path: Path) -> Iterator[Member]:
    """The files of the archives within an archive, none of which is compressed.

    Raises:
        DataError: one is damaged, or is none.
    """
    with naming_file(path, "the archive does not read", ERRORS), tarfile.open(path, "r:") as archive:
        for entry in archive:
            if not entry.isfile():
                continue
            with tarfile.open(fileobj=archive.extractfile(entry), mode="r:") as within:
                for file in within:
                    if file.isfile():
                        yield Member(file.name, entry.offset_data + file.offset_data, file.size, entry.name)
