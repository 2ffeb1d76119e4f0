"""Copies on this machine of what is elsewhere: bounded, and safe for many processes at once.

A copy that some process has open is never removed. Of the others, the ones that were not used for the longest time go,
where a new one needs their room.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from datasets.sample import DataError

LIMIT = "SHARD_CACHE_GB"
COPIES = (".arrow", ".pt")


def hold(path: Path) -> BinaryIO | None:
    """Open a copy, so that it stays as long as the file is open, and note that it was used.

    Returns:
        The open file; None where the copy is gone.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH)
        os.utime(path)
    except FileNotFoundError:  # removed since it was opened
        file.close()
        return None
    except OSError:  # a file system without locks, or another user's file: it may be removed, but is open already
        return file
    if os.fstat(file.fileno()).st_nlink:
        return file
    file.close()
    return None


def make_room(folder: Path, coming: int) -> None:
    """Remove copies that nobody has open, the longest unused first, until there is room for another one.

    Where those that are open leave no room, the limit is exceeded.

    Args:
        folder: of the copies.
        coming: bytes of the new one.

    Raises:
        DataError: the limit is no number of gigabytes.
    """
    with FileLock(folder / ".room.lock"):
        copies = sorted(_copies(folder))
        held = sum(size for _, size, _ in copies)
        limit = _limit(folder, held)
        for _, size, path in copies:
            if held + coming <= limit:
                return
            if _removed(path):
                held -= size


def _copies(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """When each copy was last used, its bytes, its path."""
    for path in folder.iterdir():
        if path.suffix in COPIES:
            try:
                found = path.stat()
            except FileNotFoundError:
                continue
            yield found.st_mtime, found.st_size, path


def _limit(folder: Path, held: int) -> float:
    """Bytes that all copies may have: as the user says, else half of what the disk has for them."""
    given = os.environ.get(LIMIT)
    if not given:
        return (shutil.disk_usage(folder).free + held) / 2
    try:
        return float(given) * 1e9
    except ValueError:
        raise DataError(f"{LIMIT} = {given!r}: the most gigabytes of copies on this machine, such as 200") from None


def _removed(path: Path) -> bool:
    """Whether a copy could be removed: nobody has it open."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except OSError:
        return False
    return True
