"""The checkpoint that a command line names: a file, a stage or a run, in a folder or in a bucket."""

from __future__ import annotations

import hashlib
import posixpath
import re
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock
from pyarrow import fs

from datasets.cache import make_room
from datasets.owned import own_folder
from datasets.storage import exists, locate, read_bytes
from pipelines.base.addresses import CURE, hide_secret, holds_secret
from pipelines.base.errors import InputError
from pipelines.base.files import replacing
from pipelines.runs.folder import RunFolder, StageFolder
from pipelines.runs.mirror import PAUSES, StoreFailed, attempt, fetch
from pipelines.runs.results import Result, final_name

WEIGHTS = "weights"  # of buckets, below the copies of runs


def named_checkpoint(given: str) -> Path:
    """The file of a checkpoint on this machine; one of a bucket is copied to this user's cache, once per version.

    Args:
        given: a file, a finished stage's folder, or a run's, whose last finished stage is taken; a path or a URI.

    Raises:
        DataError: no bucket answers.
        InputError: there is no such checkpoint.
    """
    if "://" not in given:
        local = Path(given).expanduser().resolve()
        return local if not local.is_dir() else Path(within(given, *locate(str(local))))
    if holds_secret(given):
        raise InputError(f"{hide_secret(given)} holds a user or password, which would be logged. {CURE}")
    system, path = locate(given)
    return cached(given, system, within(given, system, path))


def within(given: str, system: Any, path: str) -> str:
    """The checkpoint's file that a path of a file system names.

    Raises:
        InputError: it names none.
    """
    info = system.get_file_info(path)
    if info.type == fs.FileType.File:
        return path
    stages = [path]
    if exists(system, page := f"{path}/{RunFolder(Path()).recipe}"):
        recipe = yaml.safe_load(read_bytes(system, page))
        stages = [f"{path}/{stage['name']}" for stage in recipe["stages"]]
    done = [stage for stage in stages if exists(system, f"{stage}/{StageFolder(Path()).result}")]
    if not done:
        which = "a run of which no stage is finished" if len(stages) > 1 or stages != [path] else "no checkpoint"
        raise InputError(
            f"{hide_secret(given)}: {which}; name RUN/STAGE/best.pt, RUN/STAGE/checkpoints/step-….pt, or the folder of "
            "a finished stage or run"
        )
    result = Result.parse(read_bytes(system, f"{done[-1]}/{StageFolder(Path()).result}"))
    return f"{done[-1]}/{final_name(result)}"


def cached(given: str, system: Any, path: str) -> Path:
    """A copy of a bucket's file on this machine; the one that is there, if the bucket's is still the same.

    Raises:
        InputError: it cannot be read.
    """
    info = system.get_file_info(path)
    folder = own_folder("RUN_CACHE", "runs") / WEIGHTS
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    options = given.partition("?")[2]
    key = hashlib.sha256(f"{path} {options} {info.size} {info.mtime_ns}".encode()).hexdigest()[:12]
    words = re.sub(r"[^\w.-]", "_", "-".join(posixpath.normpath(path).split("/")[-3:]))
    target = folder / f"{key}-{words}"
    with FileLock(folder / f".{key}.held"):
        if target.exists():
            target.touch()
            return target
        make_room(folder, info.size)
        try:
            with replacing(target) as temporary:
                attempt(lambda: fetch(system, path, temporary), hide_secret(given), PAUSES[:3])
        except (StoreFailed, FileNotFoundError) as error:
            raise InputError(str(error)) from None
    return target
