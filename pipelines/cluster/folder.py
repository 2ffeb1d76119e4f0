"""A folder of this user's own whose path is short enough for sockets: Slurm and others set a long TMPDIR."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipelines.base.errors import SetupError

LIMIT = 103 if sys.platform == "darwin" else 107  # bytes of a socket's path
RAYS = len("/ray/session_2026-11-20_12-00-00_123456_4194304/sockets/plasma_store")  # the longest of Ray's
PYTHONS = len("/pymp-12345678/listener-12345678")  # of Python's multiprocessing


def own_folder() -> dict[str, str]:
    """The variable that gives local sessions a folder of their own.

    In Ray's usual one a cluster that was killed leaves its address behind, and Ray Train's workers ask there, for
    10 s and more at the end of each training.
    """
    given = os.environ.get("RAY_TMPDIR")
    return {"RAY_TMPDIR": given if given and fits(given, RAYS) else str(short_folder(RAYS))}


@contextlib.contextmanager
def short_sockets() -> Iterator[None]:
    """While the body runs, Python chooses a folder for its sockets in which their paths fit."""
    before = tempfile.tempdir
    if not fits(tempfile.gettempdir(), PYTHONS):
        tempfile.tempdir = str(short_folder(PYTHONS))
    try:
        yield
    finally:
        tempfile.tempdir = before


def fits(folder: str | Path, below: int) -> bool:
    """Whether a socket `below` bytes further down has a path that the system allows."""
    return len(os.fsencode(folder)) + below <= LIMIT


def short_folder(below: int) -> Path:
    """A folder that nobody else can enter, in the first usual place whose path is short enough.

    Args:
        below: bytes of the path that sockets add.

    Raises:
        SetupError: there is none.
    """
    usual = [tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR"), "/tmp", "/var/tmp", "/dev/shm"]
    places = [place for place in usual if place]
    for folder in (Path(place).absolute() / f"context-heads-ray-{os.getuid()}" for place in places):
        if fits(folder, below) and (found := made(folder)):
            return found
    raise SetupError(
        f"no folder for Ray's sockets: their paths may have {LIMIT} bytes, and below {' or '.join(places)} they would "
        "be longer, or nothing can be written. Name a short folder of your own: RAY_TMPDIR=/short/folder"
    )


def made(folder: Path) -> Path | None:
    """The folder, made with mode 0700; another next to it where the name is somebody else's; None where none can be."""
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            return Path(tempfile.mkdtemp(prefix="ch-", dir=folder.parent))
        if stat.S_IMODE(found.st_mode) != 0o700:
            folder.chmod(0o700)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None
