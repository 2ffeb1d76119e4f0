"""Weights of a backbone, brought to this machine."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import pyarrow.fs

from pipelines.base.errors import InputError
from pipelines.base.files import replacing


@dataclass(frozen=True)
class Weights:
    """Weights of a backbone: a local path, or `hub`, and the sha256 of the file; None for random ones."""

    path: str | None = None
    sha256: str | None = None


def localise(weights: str | None, output: Path) -> Weights:
    """The weights that a recipe names, on this machine; `hub:` is handed to timm as it is.

    Raises:
        InputError: nothing there.
    """
    if weights is None or weights == "hub:":
        return Weights() if weights is None else Weights("hub", "timm hub")
    if "://" not in weights:
        path = Path(weights).expanduser().resolve()
    else:
        path = output / "weights" / weights.split("://", 1)[1].replace("/", "_")
        if not path.exists():
            fetch(weights, path)
    if not path.is_file():
        raise InputError(f"backbone.weights = {weights!r}: no such file. Give a path, a URI, `hub:` or null.")
    with path.open("rb") as file:
        return Weights(str(path), hashlib.file_digest(file, "sha256").hexdigest())


def fetch(uri: str, path: Path) -> None:
    """Copy a remote file, whole or not at all."""
    try:
        system, inner = pyarrow.fs.FileSystem.from_uri(uri)
        with replacing(path) as temporary, system.open_input_stream(inner) as source, temporary.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    except (OSError, ValueError) as error:
        raise InputError(f"backbone.weights = {uri!r} cannot be read: {error}") from None
