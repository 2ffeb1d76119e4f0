"""Weights that a recipe starts from, compared with its model before anything starts."""

from __future__ import annotations

import contextlib
import dataclasses
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipelines.base.errors import InputError
from pipelines.base.text import first_sentence
from pipelines.driver.weights import HUB, TRUNK, WHOLE, Weights, localise
from pipelines.recipes.recipe import Recipe

PROBE_S = 5.0


def start_of(recipe: Recipe, output: Path) -> Weights:
    """The weights that a recipe starts from, brought to this machine and compared with its model.

    Raises:
        InputError: there are none, or they do not fit.
    """
    if recipe.weights is None:
        return check_weights(recipe, localise(recipe.backbone.weights, output))
    return check_checkpoint(recipe, localise(recipe.weights, output, WHOLE))


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
    from pipelines.recipes.model import few_classes, meta_model
    from segmodels.backbone import kind_of
    from segmodels.weight_files import Unreadable
    from segmodels.weights import load_weights

    try:
        name = recipe.backbone.name
        own = meta_model(recipe, few_classes(recipe)).backbone
        taken = load_weights(own.trunk, weights.path, name, kind_of(name).classifier, own.context)
    except Unreadable as error:
        raise InputError(f"backbone.weights: {error}") from None
    except ValueError as error:
        raise InputError(misfit(recipe, weights.path, str(error))) from None
    return dataclasses.replace(weights, taken=dataclasses.asdict(taken), seen=seen_by(weights.path))


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
    told = dataclasses.asdict(taken) | {
        "left": f"{taken.left}; where a class of its {len(classes)} is another, classifiers too"
    }
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
    with hub() as silent:
        try:
            build_backbone(**parts)
        except ValueError as error:
            raise InputError(f"{TRUNK} = {HUB!r}: {error}") from None
        except Exception as error:  # of the network, of the hub
            raise InputError(
                f"{TRUNK} = {HUB!r}: timm cannot download the weights of {recipe.backbone.name}: "
                f"{silent or first_sentence(error)}. Give a file, or null for random weights."
            ) from None


@contextlib.contextmanager
def hub() -> Iterator[str]:
    """Where HuggingFace's hub cannot be reached, its client looks only into its cache, without a minute of retries.

    Yields:
        Why it cannot be reached; empty where it can.
    """
    from huggingface_hub import constants

    before, silent = constants.HF_HUB_OFFLINE, ""
    try:  # by a proxy, where the environment names one
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=PROBE_S).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError) as error:
        constants.HF_HUB_OFFLINE = True
        why = getattr(error, "reason", error)
        silent = f"{constants.ENDPOINT} cannot be reached ({why}), and this machine's cache has none of them"
    try:
        yield silent
    finally:
        constants.HF_HUB_OFFLINE = before
