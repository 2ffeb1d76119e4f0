"""Weights of a backbone: brought to this machine, and compared with the trunk before anything starts."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from datasets.sample import DataError
from datasets.storage import locate
from pipelines.base.addresses import hide_secret
from pipelines.base.errors import InputError
from pipelines.base.files import replacing
from pipelines.base.text import first_sentence, nearest
from pipelines.recipes.recipe import Recipe

HUB = "hub:"
PROBE_S = 5.0


@dataclass(frozen=True)
class Weights:
    """Weights of a backbone: a local path, or `hub`, and the sha256 of the file; None for random ones.

    `taken` says what of the file is `taken` and `left`, and what of the trunk is `missing` in it, once they are
    compared.
    """

    path: str | None = None
    sha256: str | None = None
    taken: Mapping[str, str] = field(default_factory=dict)


def find_weights(weights: str | None) -> None:
    """Make sure that a local file of weights is there; what is elsewhere is looked at later.

    Raises:
        InputError: it is not.
    """
    if weights is None or weights == HUB or "://" in weights:
        return
    path = Path(weights).expanduser().resolve()
    if path.is_dir():
        raise InputError(f"backbone.weights = {weights!r}: a folder; name the file in it")
    if not path.is_file():
        there = [entry.name for entry in path.parent.glob("*")] if path.parent.is_dir() else []
        raise InputError(
            f"backbone.weights = {weights!r}: no such file{nearest(path.name, there)} Give a path, a URI, `{HUB}` for "
            "timm's download, or null for random weights."
        )


def localise(weights: str | None, output: Path) -> Weights:
    """The weights that a recipe names, on this machine; timm is left to download those of `hub:`.

    Raises:
        InputError: nothing there.
    """
    if weights is None or weights == HUB:
        return Weights() if weights is None else Weights("hub", "timm hub")
    find_weights(weights)
    if "://" not in weights:
        path = Path(weights).expanduser().resolve()
    else:
        path = output / "weights" / weights.split("://", 1)[1].replace("/", "_")
        if not path.exists():
            fetch(weights, path)
    with path.open("rb") as file:
        return Weights(str(path), hashlib.file_digest(file, "sha256").hexdigest())


def fetch(uri: str, path: Path) -> None:
    """Copy a remote file, whole or not at all.

    Raises:
        InputError: it cannot be read; the message has the cure that its bucket's error asks for.
    """
    with readable(uri), replacing(path) as temporary:
        system, inner = locate(uri)
        with system.open_input_stream(inner) as source, temporary.open("wb") as sink:
            shutil.copyfileobj(source, sink)


def look_at(uri: str) -> None:
    """Make sure that a remote file can be read, without fetching it.

    Raises:
        InputError: as `fetch`.
    """
    with readable(uri):
        system, inner = locate(uri)
        system.open_input_stream(inner).close()


@contextlib.contextmanager
def readable(uri: str) -> Iterator[None]:
    """Say of a remote file that cannot be read what helps.

    Raises:
        InputError: for what reading raises in the body.
    """
    try:
        yield
    except (DataError, OSError, ValueError) as error:
        raise InputError(
            f"backbone.weights = {hide_secret(uri)!r} cannot be read: {hide_secret(str(error))}. Allowed: "
            f"a path, a file://, s3:// or gs:// URI, `{HUB}` for timm's download, and null for random weights."
        ) from None


def check_weights(recipe: Recipe, weights: Weights) -> Weights:
    """Make sure that weights fit the recipe's trunk; those of `hub:` are downloaded to this machine's cache.

    Returns:
        The same, with what is taken of the file.

    Raises:
        InputError: they do not fit, or cannot be read.
    """
    if weights.path is None:
        return weights
    if weights.path == "hub":
        download(recipe)
        return weights

    from pipelines.driver.misfit import misfit
    from pipelines.recipes.model import meta_model
    from segmodels.backbone import BACKBONES
    from segmodels.weights import Unreadable, load_weights

    try:
        name = recipe.backbone.name
        taken = load_weights(meta_model(recipe, 2).backbone.trunk, weights.path, name, BACKBONES[name].classifier)
    except Unreadable as error:
        raise InputError(f"backbone.weights: {error}") from None
    except ValueError as error:
        raise InputError(misfit(recipe, weights.path, str(error))) from None
    return dataclasses.replace(weights, taken=asdict(taken))


def download(recipe: Recipe) -> None:
    """Let timm download the trunk's weights.

    Raises:
        InputError: timm has none, or cannot be reached.
    """
    from segmodels.backbone import build_backbone

    parts = dataclasses.asdict(recipe.backbone) | {"weights": "hub"}
    del parts["neck"]
    try:
        with hub():
            build_backbone(**parts)
    except ValueError as error:
        raise InputError(f"backbone.weights = {HUB!r}: {error}") from None
    except Exception as error:  # of the network, of the hub
        raise InputError(
            f"backbone.weights = {HUB!r}: timm cannot download the weights of {recipe.backbone.name}: "
            f"{first_sentence(error)}. Give a file, or null for random weights."
        ) from None


@contextlib.contextmanager
def hub() -> Iterator[None]:
    """Where HuggingFace's hub cannot be reached, its client looks only into its cache, without a minute of retries."""
    from huggingface_hub import constants

    place = urllib.parse.urlsplit(constants.ENDPOINT)
    before = constants.HF_HUB_OFFLINE
    if not urllib.request.getproxies():
        try:
            socket.create_connection((place.hostname or "", place.port or 443), PROBE_S).close()
        except OSError:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
