"""What a prediction is asked for: files, folders, patterns, videos, buckets, shards."""

from __future__ import annotations

import glob
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from datasets.manifest import MANIFEST
from datasets.readers.files import instead
from datasets.readers.formats import READ
from datasets.storage import exists, locate
from datasets.text import named
from pipelines.base.errors import InputError
from pipelines.base.pictures import safe_name
from pipelines.feed.plan import open_shards

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
WILD = re.compile(r"[*?\[]")
JUNK = ("thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class Source:
    """One image, or one video.

    Args:
        name: of its results, without suffix; parts between slashes are folders, and none leads out of the results'.
        kind: what it is.
        place: path or URI of the file, or of the shards.
        row: of the shards.
    """

    name: str
    kind: Literal["image", "video", "row"]
    place: str
    row: int = 0


def find(inputs: Iterable[str]) -> tuple[list[Source], list[str]]:
    """The sources of all inputs, each with its own name, and the files in their folders that are none.

    Two files of one stem keep their suffix in the name.

    Raises:
        InputError: nothing is there, or two files get one name.
        DataError: a bucket or shards that do not answer.
    """
    sources, others = [], []
    for given in inputs:
        found, strange = find_in(given)
        if not found:
            there = f"but {named(strange)}" if strange else "it is empty"
            kinds = f"images ({', '.join(READ)}) or videos ({', '.join(VIDEOS)})"
            raise InputError(f"{given}: nothing to predict in it, {there}; expected are {kinds}")
        sources += found
        others += strange
    return unlike(sources), others


def unlike(sources: list[Source]) -> list[Source]:
    """The sources with unlike names, also where a disk takes large and small letters for the same.

    Raises:
        InputError: names stay alike.
    """
    counts = Counter(source.name.lower() for source in sources)
    kept = [
        replace(source, name=source.name + Path(source.place).suffix)
        if counts[source.name.lower()] > 1 and source.kind != "row" else source
        for source in sources
    ]  # fmt: skip
    first: dict[str, Source] = {}
    for source in kept:
        if (other := first.setdefault(source.name.lower(), source)) is not source:
            raise InputError(
                f"{other.place} and {source.place} would both be written as {source.name}; give the folder that holds "
                "both, or predict one after the other with another --out"
            )
    return kept


def find_in(given: str) -> tuple[list[Source], list[str]]:
    """The sources of one input, and the files in it that are none.

    Raises:
        InputError: nothing is there.
        DataError: a bucket or shards that do not answer.
    """
    if "://" in given:
        return find_remote(given)
    path = Path(given).expanduser()
    if path.is_dir():
        return (find_rows(str(path)), []) if (path / MANIFEST).exists() else sorted_out(under(path), str(path))
    if path.exists():  # named by the user: the content decides what it is
        return [Source(safe(path.stem), kind_of(path.name) or "image", str(path.absolute()))], []
    if WILD.search(given):
        fixed = Path(*(part for part in parts_before_wild(path)))
        files = [name for name in sorted(glob.glob(str(path), recursive=True)) if os.path.isfile(name)]
        if not files:
            raise InputError(f"no file is like {given!r}; in a shell, put the pattern in quotes")
        return sorted_out(files, str(fixed))
    there = f" ({cure})" if (cure := instead(path)) else ""
    raise InputError(
        f"no file or folder {given}{there}; give an image, a video, a folder, a pattern in quotes, s3://, or shards"
    )


def parts_before_wild(path: Path) -> Iterator[str]:
    """The leading folders of a pattern that are no pattern."""
    for part in path.parts[:-1]:
        if WILD.search(part):
            return
        yield part


def under(folder: Path) -> list[str]:
    """All files below a folder, in order; hidden ones and what file managers leave are passed over."""
    found = []
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [os.path.join(where, name) for name in sorted(files) if not is_junk(name)]
    return found


def is_junk(name: str) -> bool:
    """Whether a file is hidden, or left by a file manager."""
    return name.startswith(".") or name.lower() in JUNK


def sorted_out(files: Iterable[str], base: str) -> tuple[list[Source], list[str]]:
    """Images and videos among files, named by their path below `base`, and the files that are neither."""
    sources, others = [], []
    for file in files:
        if kind := kind_of(file):
            relative = posixpath.relpath(file, base) if "://" in file else os.path.relpath(file, base)
            place = file if "://" in file else os.path.abspath(file)
            sources.append(Source(safe(os.path.splitext(relative)[0]), kind, place))
        else:
            others.append(os.path.basename(file))
    return sources, others


def kind_of(name: str) -> Literal["image", "video", None]:
    """What a file is, by its suffix."""
    suffix = os.path.splitext(name)[1].lower()
    return "image" if suffix in READ else "video" if suffix in VIDEOS else None


def safe(name: str) -> str:
    """A relative path as a name of results: no part of it leads elsewhere, and unlike paths give unlike names."""
    return "/".join(safe_name(part) for part in name.replace(os.sep, "/").split("/"))


def find_rows(uri: str) -> list[Source]:
    """The rows of shards.

    Raises:
        DataError: they are not there, or of another version.
    """
    place = uri if "://" in uri else os.path.abspath(uri)
    return [Source(safe_name(name), "row", place, row) for row, name in enumerate(open_shards(place).ids)]


def find_remote(uri: str) -> tuple[list[Source], list[str]]:
    """The sources below a bucket's prefix, or its shards, or the one file.

    Raises:
        InputError: there is nothing.
        DataError: no bucket answers.
    """
    from pyarrow import fs

    system, path = locate(uri)
    if exists(system, f"{path}/{MANIFEST}"):
        return find_rows(uri), []
    root, mark, options = uri.partition("?")
    scheme, _, _ = root.partition("://")
    info = system.get_file_info(path)
    if info.type == fs.FileType.File:
        return [Source(safe(posixpath.splitext(posixpath.basename(path))[0]), kind_of(path) or "image", uri)], []
    listed = system.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    names = [entry.path for entry in listed if entry.type == fs.FileType.File and not is_junk(entry.base_name)]
    if not names:
        raise InputError(f"{uri}: no file below it; correct the bucket or the prefix")
    host = f"{scheme}://" if scheme != "file" else "file:///"
    sources, others = sorted_out(sorted(host + name.lstrip("/") for name in names), host + path.lstrip("/"))
    return [replace(source, place=source.place + mark + options) for source in sources], others
