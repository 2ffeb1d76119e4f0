"""Where a run comes from, as tags of MLflow: who, by which command, with which code, versions and machine.

The process that trains notes it in the run's folder, so that a replay, by anyone and anywhere, says the same.
"""

from __future__ import annotations

import functools
import getpass
import json
import os
import shlex
import subprocess
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path

from pipelines.base import machine
from pipelines.base.addresses import hide_secret
from pipelines.base.door import ROOT, VERSION
from pipelines.base.files import write_json

PACKAGES = ("ray", "timm", "mlflow")


@functools.cache
def provenance() -> dict[str, str]:
    """All tags; the same ones for every run of this process."""
    names = {"mlflow.user": user(), "mlflow.source.name": source(), "mlflow.source.type": "LOCAL"}
    return names | {"version": VERSION} | hardware() | {"command": command()} | versions() | git()


def note_origin(path: Path) -> None:
    """Note where a run comes from; what is noted already stays."""
    if not path.exists():
        write_json(path, provenance())


def origin(path: Path) -> dict[str, str]:
    """Where a run comes from, as its folder notes it; nothing up to 0.4.0."""
    return json.loads(path.read_text()) if path.exists() else {}


def user() -> str:
    """The name that the user has here."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container nobody may have noted one
        return str(os.getuid())


def source() -> str:
    """The file that was started, from the project on."""
    path = Path(sys.argv[0] or "python").resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def command() -> str:
    """The command line, ready to be pasted, without the path of Python."""
    return shlex.join(["python", *map(hide_secret, sys.orig_argv[1:])])


def versions() -> dict[str, str]:
    """Versions of Python, of the packages that results depend on, and of PyTorch's CUDA."""
    import torch

    found = {name: metadata.version(name) for name in PACKAGES}
    found |= {"torch": torch.__version__, "cuda": torch.version.cuda or "none"}  # with what it was built for
    found["python"] = ".".join(map(str, sys.version_info[:3]))
    return {f"version.{name}": version for name, version in found.items()}


def hardware() -> dict[str, str]:
    """Processor, cores that this process may use, memory and GPUs of this machine."""
    gpus = [f"{number} x {name}" for name, number in Counter(machine.gpus()).items()]
    return {
        "hardware": ", ".join(gpus) or f"{machine.cores()} cores of {machine.cpu_model()}",
        "hardware.cpu": machine.cpu_model(),
        "hardware.cores": str(machine.cores()),
        "hardware.memory_gib": f"{machine.memory_gib():.0f}",
        "hardware.gpus": ", ".join(gpus) or "none",
    }


def git() -> dict[str, str]:
    """The commit of the code, its branch and repository, and whether files differ from it."""

    def ask(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=10
        ).stdout.strip()

    try:
        commit = ask("rev-parse", "HEAD")
        dirty = bool(ask("status", "--porcelain", "--untracked-files=no"))
        place = {"branch": ask("branch", "--show-current"), "repoURL": hide_secret(ask("remote", "get-url", "origin"))}
    except (OSError, subprocess.TimeoutExpired):
        return {}
    found = {f"mlflow.source.git.{key}": value for key, value in {"commit": commit, **place}.items() if value}
    return found | {"git.uncommitted_changes": str(dirty)} if commit else {}
