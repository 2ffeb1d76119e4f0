"""Weights that a recipe starts from: brought to this machine, and compared with the model before anything starts."""

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

import numpy as np

from datasets.sample import DataError
from datasets.storage import locate
from pipelines.base.addresses import hide_secret
from pipelines.base.errors import InputError
from pipelines.base.files import replacing
from pipelines.base.text import first_sentence, nearest
from pipelines.recipes.recipe import Recipe

HUB = "hub:"
TRUNK, WHOLE = "backbone.weights", "weights"  # the recipe's keys
PROBE_S = 5.0


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


def start_of(recipe: Recipe, output: Path) -> Weights:
    """The weights that a recipe starts from, brought to this machine and compared with its model.

    Raises:
        InputError: there are none, or they do not fit.
    """
    if recipe.weights is None:
        return check_weights(recipe, localise(recipe.backbone.weights, output))
    return check_checkpoint(recipe, localise(recipe.weights, output, WHOLE))


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
    return dataclasses.replace(weights, taken=asdict(taken), seen=seen_by(weights.path))


def check_checkpoint(recipe: Recipe, weights: Weights) -> Weights:
    """Make sure that a checkpoint fits the recipe's model; the classes of the first stage may be others.

    Returns:
        The same, with what is taken of the file where the classes are its own.

    Raises:
        InputError: it is none of this project, or of another model.
    """
    from pipelines.recipes.model import meta_model
    from segmodels.files import read
    from segmodels.starting import start_from

    path = str(weights.path)
    try:
        content = read(Path(path), mapped=True)
        classes = content["classes"]
        taken = start_from(meta_model(recipe, len(classes)), content, classes)
    except ValueError as error:  # FileError too
        raise InputError(f"weights = {recipe.weights!r}: {error}") from None
    told = asdict(taken) | {"left": f"{taken.left}; where a class of its {len(classes)} is another, classifiers too"}
    return dataclasses.replace(weights, taken=told, seen=seen_by(path))


def seen_by(path: str) -> np.ndarray:
    """Digests of the rows that a checkpoint of this project was trained on; none of any other file."""
    from segmodels.files import FileError, read

    try:
        content = read(Path(path), mapped=True, verified=False)
    except FileError:
        return np.zeros(0, np.int64)
    return content["seen"].numpy() if "seen" in content else np.zeros(0, np.int64)


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
