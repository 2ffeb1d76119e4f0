"""Copies of runs in buckets on this machine: each is one process's, or one group of workers', and goes with it."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import filelock

from datasets.owned import own_folder
from pipelines.runs.folder import HANGS

LOCK = ".held"  # of a copy, and of all


@contextlib.contextmanager
def made_copy(uri: str, name: str) -> Iterator[Path]:
    """An empty folder for a copy of a run, named as the run is, until the body ends; killed processes' are removed.

    Args:
        uri: of the run.
        name: of the copy.
    """
    folder = copy_folder(uri, name)
    place, home = folder.parents[1], folder.parents[3]
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with filelock.FileLock(home / LOCK):
        folder.mkdir(parents=True)
        clear(home, folder)
        lock = filelock.FileLock(place / LOCK)
        lock.acquire()
    try:
        yield folder
    finally:
        lock.release()
        shutil.rmtree(place, ignore_errors=True)


def copy_folder(uri: str, name: str) -> Path:
    """Where a copy of a run is on this machine.

    Args:
        uri: of the run.
        name: of the copy.
    """
    address, run = uri.partition("?")[0].rstrip("/").rsplit("/", 1)
    home = own_folder("RUN_CACHE", "runs")
    return home / hashlib.sha256(f"{address} {run}".encode()).hexdigest()[:16] / name / "runs" / run


def clear(home: Path, folder: Path) -> None:
    """Remove the copies of processes that were killed; where those of the same run hung is kept in `folder`."""
    for note in home.glob(f"*/*/{LOCK}"):
        lock = filelock.FileLock(note, timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            continue
        lock.release()
        for hang in note.parent.glob(f"runs/{folder.name}/*/{HANGS}") if note.parents[1] == folder.parents[2] else ():
            if hang.stat().st_size:
                (folder / hang.parent.name).mkdir(exist_ok=True)
                shutil.copy2(hang, folder / hang.parent.name)
        shutil.rmtree(note.parent, ignore_errors=True)
