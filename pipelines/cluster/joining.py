"""Joining the cluster of RAY_ADDRESS, only with the code: data next to it stays where it is."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from pipelines.base.door import OURS, ROOT
from pipelines.base.errors import SetupError
from pipelines.cluster.address import ALONE, SUBMIT, check_address

MOST_CODE = 512 << 20  # bytes of a working directory that Ray sends
SENT = (".py", ".yaml", ".html")  # what the code consists of


def join() -> None:
    """Join the cluster of RAY_ADDRESS; a driver that was not submitted as a job sends the code along.

    Raises:
        SetupError: the cluster cannot be joined, or the code is not there, or too large to be sent.
    """
    import ray

    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        connect()
        if not ray.get_runtime_context().runtime_env.get("working_dir"):
            ray.shutdown()
            raise SetupError(f"this job was submitted without its code. Add --working-dir, from {ROOT}:\n  {SUBMIT}")
        return
    check_address(os.environ["RAY_ADDRESS"])
    check_code(ROOT)
    connect(runtime_env={"working_dir": str(ROOT), "excludes": excludes()})


def connect(**options: Any) -> None:
    """Ray's own way of joining; what it raises is said with the address.

    Raises:
        SetupError: it did not succeed.
    """
    import ray

    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        text = " ".join(str(error).split()).rstrip(". ") or type(error).__name__
        hint = " Where the cluster asks for a token, set RAY_AUTH_MODE=token." if isinstance(error, OSError) else ""
        address = os.environ.get("RAY_ADDRESS", "none, in a job")
        raise SetupError(
            f"RAY_ADDRESS = {address}: Ray could not join this cluster: {text[:600]}.{hint} Correct that, {ALONE}"
        ) from error


def excludes() -> list[str]:
    """What of the working directory is not sent to a cluster, as lines of a .gitignore: all but the code."""
    code = [f"!*{ending}" for ending in SENT]
    beside = [f"/*{ending}" for ending in SENT]
    return ["/*", *(f"!/{name}" for name in OURS), "*.*", "!.", *code, *beside, "__pycache__"]


def check_code(root: Path, most: int = MOST_CODE) -> None:
    """Make sure that Ray can send the code, before it tries to.

    Raises:
        SetupError: it is too large, because of files that are not ours.
    """
    sizes = {
        path: path.stat().st_size
        for name in OURS
        for path in (root / name).rglob("*")
        if path.is_file() and (path.suffix in SENT or "." not in path.name) and "__pycache__" not in path.parts
    }
    if (total := sum(sizes.values())) > most:
        largest = max(sizes, key=lambda path: sizes[path])
        raise SetupError(
            f"the code below {root} has {total / 2**20:.0f} MiB, and Ray sends at most {most / 2**20:.0f} MiB to a "
            f"cluster. Move data out of {', '.join(OURS)}; the largest file is {largest}"
        )
