"""Weights that a recipe starts from: found, and brought to this machine."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datasets.sample import DataError
from datasets.storage import locate
from pipelines.base.addresses import hide_secret
from pipelines.base.errors import InputError
from pipelines.base.files import replacing
from pipelines.base.text import nearest

HUB = "hub:"
TRUNK, WHOLE = "backbone.weights", "weights"  # the recipe's keys


@dataclass(frozen=True)
class Weights:
    """Weights of a backbone: a local path, or `hub`, and the sha256 of the file; None for random ones.

    `whole` says that they are a checkpoint's, of the whole model. Once they are compared, `taken` says what of the file
    is `taken` and `left`, and what of the model is `missing` in it; `seen` are digests of the rows that a checkpoint of
    this project was trained on.
    """

    path: str | None = None
    sha256: str | None = None
    whole: bool = False
    taken: Mapping[str, str] = field(default_factory=dict)
    seen: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), compare=False)

    @property
    def key(self) -> str:
        """The recipe's key for them."""
        return WHOLE if self.whole else TRUNK

    @property
    def trunk(self) -> str | None:
        """Those of a trunk alone, or `hub`."""
        return None if self.whole else self.path

    @property
    def start(self) -> Path | None:
        """The checkpoint of a whole model."""
        return Path(self.path) if self.whole and self.path else None


def find_weights(weights: str | None, key: str = TRUNK) -> None:
    """Make sure that a local file of weights is there; what is elsewhere is looked at later.

    Args:
        weights: path or URI; None for none.
        key: the recipe's key for it.

    Raises:
        InputError: it is not.
    """
    if weights is None or weights == HUB or "://" in weights:
        return
    path = Path(weights).expanduser().resolve()
    if path.is_dir():
        raise InputError(f"{key} = {weights!r}: a folder; name the file in it")
    if not path.is_file():
        there = [entry.name for entry in path.parent.glob("*")] if path.parent.is_dir() else []
        raise InputError(f"{key} = {weights!r}: no such file{nearest(path.name, there)} Give {allowed(key)}.")


def allowed(key: str) -> str:
    """What a key of weights may be."""
    own = "a checkpoint of this project: a path, a file://, s3:// or gs:// URI, or null for none"
    trunks = f"a path, a file://, s3:// or gs:// URI, `{HUB}` for timm's download, or null for random weights"
    return own if key == WHOLE else trunks


def localise(weights: str | None, output: Path, key: str = TRUNK) -> Weights:
    """The weights that a recipe names, on this machine; timm is left to download those of `hub:`.

    Args:
        weights: path or URI; None for none.
        output: has a folder for what is fetched.
        key: the recipe's key for it.

    Raises:
        InputError: nothing there.
    """
    if weights is None:
        return Weights()
    if weights == HUB and key == TRUNK:
        return Weights("hub", "timm hub")
    find_weights(weights, key)
    if "://" not in weights:
        path = Path(weights).expanduser().resolve()
    else:
        path = output / "weights" / weights.split("://", 1)[1].replace("/", "_")
        if not path.exists():
            fetch(weights, path, key)
    with path.open("rb") as file:
        return Weights(str(path), hashlib.file_digest(file, "sha256").hexdigest(), key == WHOLE)


def fetch(uri: str, path: Path, key: str = TRUNK) -> None:
    """Copy a remote file, whole or not at all.

    Raises:
        InputError: it cannot be read; the message has the cure that its bucket's error asks for.
    """
    with readable(uri, key), replacing(path) as temporary:
        system, inner = locate(uri)
        with system.open_input_stream(inner) as source, temporary.open("wb") as sink:
            shutil.copyfileobj(source, sink)


def look_at(uri: str, key: str = TRUNK) -> None:
    """Make sure that a remote file can be read, without fetching it.

    Raises:
        InputError: as `fetch`.
    """
    with readable(uri, key):
        system, inner = locate(uri)
        system.open_input_stream(inner).close()


@contextlib.contextmanager
def readable(uri: str, key: str) -> Iterator[None]:
    """Say of a remote file that cannot be read what helps.

    Raises:
        InputError: for what reading raises in the body.
    """
    try:
        yield
    except (DataError, OSError, ValueError) as error:
        raise InputError(
            f"{key} = {hide_secret(uri)!r} cannot be read: {hide_secret(str(error))}. Allowed: {allowed(key)}."
        ) from None
