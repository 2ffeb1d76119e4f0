"""The release that `prepare` reads: a folder that all nodes see, fetched first if it is in a bucket."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.base.errors import InputError, SetupError
from pipelines.base.files import replacing

if TYPE_CHECKING:
    from pyarrow import fs

THREADS = 8  # files that are fetched at once: a bucket answers slowly, but to many
CHUNK = 8 << 20
TELL_S = 5.0
DEPTH, LINES = 4, 40  # of the drawing of what was found


def local_release(source: str, stage: Path | None) -> Path:
    """The folder of the release on this machine, fetched if it is in a bucket.

    Args:
        source: a folder, or a file://, s3:// or gs:// URI of one.
        stage: where releases of buckets are kept; by default $RELEASE_CACHE, else ~/.cache/context-heads/releases.

    Raises:
        InputError: an archive in a bucket.
        DataError: no such folder or URI, an archive, or nothing in it but archives.
        SetupError: the disk is too small for it.
    """
    from datasets.readers.files import check_folder, is_archive
    from datasets.storage import locate

    if source.startswith("file://") or "://" not in source:
        path = Path(locate(source)[1] if "://" in source else source).expanduser().resolve()
        check_folder(path)
        return path
    default = os.environ.get("RELEASE_CACHE") or Path.home() / ".cache/context-heads/releases"
    name = source.partition("?")[0].rstrip("/").rsplit("/", 1)[1]
    if is_archive(name):
        raise InputError(f"--source {source} is an archive. Unpack it, and give the folder: here, or in the bucket")
    folder = Path(stage or default).expanduser().resolve() / f"{name}-{hashlib.sha256(source.encode()).hexdigest()[:8]}"
    fetch(source, folder)
    return folder


def fetch(uri: str, folder: Path) -> None:
    """Copy all files below a URI to a folder, those that are not there yet; each appears whole or not at all.

    Raises:
        DataError: nothing is there.
        SetupError: the disk is too small for it.
    """
    from pyarrow import fs

    from datasets.sample import DataError
    from datasets.storage import locate

    system, root = locate(uri)
    found = system.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
    files = {info.path[len(root) :].lstrip("/"): info for info in found if info.type == fs.FileType.File}
    if not files:
        raise DataError(f"{uri}: no file is there; give the URI of the unpacked release's folder")
    wanted = {name: info for name, info in files.items() if not is_there(folder / name, info)}
    size, folder_size = sum(i.size for i in wanted.values()), sum(i.size for i in files.values())
    print(f"{uri}: {len(files)} files, {folder_size / 1e9:.2f} GB; {len(wanted)} of them, {size / 1e9:.2f} GB, are "
          f"fetched to {folder}", flush=True)  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder).free) < size:
        raise SetupError(
            f"{folder} has room for {free / 1e9:.1f} GB, {size / 1e9:.1f} GB are to be fetched from {uri}. Make room, "
            "or name another folder with --stage DIR or RELEASE_CACHE."
        )
    began = told = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        copies = {pool.submit(copy, system, info, folder / name): info.size for name, info in wanted.items()}
        done = 0
        for copied in as_completed(copies):
            copied.result()
            done += copies[copied]
            if (now := time.monotonic()) - told > TELL_S:
                told = now
                left = (size - done) / max(done / (now - began), 1)
                print(f"   fetching: {done / 1e9:.2f}/{size / 1e9:.2f} GB  ETA {left:.0f} s", flush=True)


def is_there(path: Path, info: fs.FileInfo) -> bool:
    """Whether this version of a file was fetched already, by its size and time."""
    return path.is_file() and (path.stat().st_size, path.stat().st_mtime_ns) == (info.size, info.mtime_ns or 0)


def copy(system: fs.FileSystem, info: fs.FileInfo, path: Path) -> None:
    """Fetch a file; it keeps its modification time, by which `prepare` recognises it."""
    with replacing(path) as temporary:
        with system.open_input_stream(info.path) as stream, temporary.open("wb") as file:
            while data := stream.read(CHUNK):
                file.write(data)
        os.utime(temporary, ns=(info.mtime_ns or 0,) * 2)


def drawn_tree(source: Path) -> str:
    """The contents of a folder: its folders, four deep, each with the number of files of each suffix."""
    lines = [f"{source}/", *itertools.islice(_branches(source, 1), LINES)]  # no further: large trees take minutes
    return "\n".join(lines if len(lines) <= LINES else [*lines[:LINES], "  ... and more"])


def _branches(folder: Path, depth: int) -> Iterator[str]:
    from datasets.readers.files import is_archive, unpack

    indent = "  " * depth
    with os.scandir(folder) as entries:
        inside = sorted(entries, key=lambda entry: entry.name)
    endings: Counter[str] = Counter()
    for entry in inside:
        if not entry.is_dir():
            endings[os.path.splitext(entry.name)[1] or entry.name] += 1
            if is_archive(entry.name):
                yield f"{indent}{unpack(Path(entry.path))}"
        elif depth == DEPTH:
            yield f"{indent}{entry.name}/ ..."
        else:
            yield f"{indent}{entry.name}/"
            yield from _branches(Path(entry.path), depth + 1)
    if endings:
        kinds = ", ".join(f"{count} {ending}" for ending, count in endings.most_common(5))
        yield f"{indent}{kinds}"
