"""Everything that can be found wrong before a worker starts: the model, the shards, what may be scored on what."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs
import torch

from datasets.shards import Manifest, Shards, read_manifest
from datasets.storage import below
from pipelines.cluster import Sizes
from pipelines.loop import inference_of, micro_batch, train_mode
from pipelines.recipe import InferenceSpec, Recipe, RecipeError, Stage
from segmodels.inference import Inference, predict
from segmodels.losses import Objective
from segmodels.segmentor import Segmentor, build_segmentor


@dataclass(frozen=True)
class Leg:
    """A stage with its shards opened; `seen` are digests of all rows trained on when it ends."""

    stage: Stage
    train_uri: str
    val_uri: str | None
    train: Manifest
    val: Manifest | None
    steps: int
    seen: np.ndarray


def check_model(recipe: Recipe) -> None:
    """Build the model without memory, so that a wrong keyword is found before anything starts.

    Raises:
        RecipeError: what the builders refuse.
    """
    try:
        with torch.device("meta"):
            model = meta_model(recipe, 2)
            outputs = model.train()(torch.zeros(2, 3, *recipe.view.crop, dtype=torch.uint8))
        objective = Objective(recipe.loss)
        objective.check(outputs)
        for spec in (recipe.inference, recipe.validation or recipe.inference):
            check_window(recipe, spec, model.window)
    except (ValueError, TypeError) as error:
        raise RecipeError(str(error)) from None
    if forgotten := sorted(set(outputs) - set(recipe.loss)):
        raise RecipeError(
            f"loss has terms for {sorted(recipe.loss)}, the model gives {sorted(outputs)}: every output needs a term, "
            f"or it never learns. Add loss.{forgotten[0]}={{TERM: WEIGHT}}, e.g. cross_entropy; weight 0 leaves it out"
        )


def check_window(recipe: Recipe, spec: InferenceSpec, window: tuple[int, int] | None) -> None:
    """Windows must fit their strides, and of a head that is bound to its crop they must be that crop.

    Raises:
        RecipeError: they do not, or are not.
    """
    try:
        given = inference_of(recipe, spec).window
    except ValueError as error:
        raise RecipeError(f"inference: {error}") from None
    if window and spec.mode == "slide" and given != window:
        raise RecipeError(f"inference.window = {given}: {recipe.head['name']} keeps to its training crop {window}")


def meta_model(recipe: Recipe, classes: int) -> Any:
    """The recipe's segmentor with random weights."""
    backbone = dataclasses.asdict(recipe.backbone) | {"weights": None}
    return build_segmentor(
        num_classes=classes, crop=recipe.view.crop, backbone=backbone, head=recipe.head, aux=recipe.aux
    )


def check_share(recipe: Recipe, sizes: Sizes) -> None:
    """The global batch must fall into equal parts, each enough for the head's norms.

    Raises:
        RecipeError: it does not, or one image alone cannot be normalised.
    """
    if recipe.batch % max(1, sizes.count):
        fits = [n for n in range(1, recipe.batch + 1) if recipe.batch % n == 0]
        raise RecipeError(
            f"batch = {recipe.batch} cannot be split over {sizes.count} workers; workers.count may be {fits}"
        )
    world = max(1, sizes.count)
    if micro_batch(recipe, world) == 1 and not (sizes.gpus and world > 1):  # synchronised norms see all workers' images
        try:
            model = meta_model_of(recipe, 2)
            train_mode(model, recipe)
            model(torch.zeros(1, 3, *recipe.view.crop, dtype=torch.uint8, device="meta"))
        except ValueError as error:
            raise RecipeError(f"{error} (batch, workers.count, workers.micro_batch)") from None


def plan_legs(recipe: Recipe, root: str, folder: Path | None = None) -> list[Leg]:
    """Open the shards of all stages and check them against each other.

    Args:
        root: of the shards.
        folder: of a run that may have begun.

    Raises:
        DataError: shards that are missing or of another schema.
        RecipeError: classes that differ within a stage, unlabelled or too few rows, rows that a stage would be
            scored on after it, or a stage before it, was trained on them, or other rows than the run began with.
    """
    legs: list[Leg] = []
    seen = np.zeros(0, np.int64)
    for stage in recipe.stages:
        train_uri = locate(root, stage.train)
        val_uri = locate(root, stage.val) if stage.val else None
        train, val = read_manifest(train_uri), read_manifest(val_uri) if val_uri else None
        for uri, manifest in ((train_uri, train), (val_uri, val)):
            if manifest is not None and (not manifest.labelled or not manifest.rows):
                raise RecipeError(f"stage {stage.name}: {uri} has {manifest.rows} rows, labelled: {manifest.labelled}")
        if val and val.classes != train.classes:
            raise RecipeError(
                f"stage {stage.name}: {stage.train} has {len(train.classes)} classes {list(train.classes[:4])}…, "
                f"{stage.val} has {len(val.classes)} {list(val.classes[:4])}…: they must be the same"
            )
        seen = np.union1d(seen, digests(Shards(train_uri)))
        if val_uri:
            refuse_seen(stage, seen, Shards(val_uri))
            check_sizes(recipe, recipe.validation or recipe.inference, stage.val or "", Shards(val_uri))
        steps = stage.steps or max(1, int((stage.epochs or 0) * train.rows // recipe.batch))
        warmup = recipe.optim.warmup if stage.warmup is None else stage.warmup
        if warmup >= steps:
            raise RecipeError(
                f"stage {stage.name}: warmup = {warmup} steps, the stage has {steps}: fewer, or more epochs"
            )
        legs.append(Leg(stage, train_uri, val_uri, train, val, steps, seen))
        if folder is not None:
            check_rows(legs[-1], folder / stage.name)
    return legs


def check_rows(leg: Leg, place: Path) -> None:
    """Make sure that a stage which has begun finds the rows that it began with.

    Raises:
        RecipeError: the shards hold others, so its steps and its score would be of both.
    """
    about = place / "about.json"
    if not about.exists() or not ((place / "done.json").exists() or any(place.glob("checkpoints/step-*.pt"))):
        return
    noted = json.loads(about.read_text())["params"]
    for part, uri, manifest in (("train", leg.train_uri, leg.train), ("val", leg.val_uri, leg.val)):
        before = noted.get(f"shards.{part}.hash")
        if manifest and before and before != manifest.hash:
            raise RecipeError(
                f"stage {leg.stage.name}: {uri} holds other rows than when this run began (hash {before[:12]}… then, "
                f"{manifest.hash[:12]}… now). Put the shards of then there, or train anew under another name=…"
            )


def locate(root: str, name: str) -> str:
    """Where shards lie: `name` itself when it is a URI or an absolute path, else below the root (a path or URI)."""
    return below(root, name)


def digests(shards: Shards) -> np.ndarray:
    """A sorted int64 for each row: the first 8 bytes of its image's sha256."""
    return np.unique(np.array([int(text[:16], 16) for text in shards.sha256], np.uint64).view(np.int64))


def refuse_seen(stage: Stage, seen: np.ndarray, val: Shards) -> None:
    """A score on rows that were trained on says nothing.

    Raises:
        RecipeError: some rows of `val` were.
    """
    both = int(np.isin(digests(val), seen).sum())
    if both:
        raise RecipeError(
            f"stage {stage.name}: {both} of the {len(val)} images of {stage.val} are trained on, by this stage "
            f"({stage.train}) or one before it, so a score on them would mean nothing. Remove `val` from the stage "
            "(train+val models are scored on the test server), or validate on other rows."
        )


def check_sizes(recipe: Recipe, spec: InferenceSpec, name: str, val: Shards) -> None:
    """A head bound to its crop cannot see whole images of another size, and some heads none of few cells.

    Raises:
        RecipeError: it would have to.
    """
    model = meta_model_of(recipe, 2).eval()
    window = model.window
    odd = [tuple(map(int, size)) for size in np.unique(val.sizes, axis=0) if tuple(size) != window] if window else []
    if odd and spec.mode == "whole":
        raise RecipeError(
            f"the head {recipe.head['name']} is bound to its crop {window}, {name} has images of {odd[:3]}: "
            "use sliding windows (inference.mode=slide), or head.resample=true where the head has it"
        )
    if spec.mode == "whole":
        inference = inference_of(recipe, spec)
        for size in {tuple(map(int, val.sizes[val.sizes[:, axis].argmin()])) for axis in (0, 1)}:
            try_size(model, inference, name, size)


def try_size(model: Segmentor, inference: Inference, name: str, size: tuple[int, ...]) -> None:
    """Predict an image of a size at the smallest scale, without computing anything.

    Raises:
        RecipeError: the head does not take so small a map.
    """
    scale = min(inference.scales)
    smallest = dataclasses.replace(inference, scales=(scale,), flip=False)
    try:
        predict(model, torch.zeros(1, 3, *size, dtype=torch.uint8, device="meta"), smallest)
    except ValueError as error:
        raise RecipeError(
            f"{name} has an image of {size[0]}x{size[1]} pixels, seen whole at scale {scale}: {error}; or use sliding "
            "windows (inference.mode=slide), to whose size it is padded"
        ) from None


def localise(weights: str | None, output: Path) -> tuple[str | None, str | None]:
    """A local path and the sha256 of backbone weights; `hub:` is handed to timm as it is.

    Raises:
        RecipeError: nothing there.
    """
    if weights is None or weights == "hub:":
        return (None, None) if weights is None else ("hub", "timm hub")
    if "://" not in weights:
        path = Path(weights).expanduser().resolve()
    else:
        path = output / "weights" / weights.split("://", 1)[1].replace("/", "_")
        if not path.exists():
            fetch(weights, path)
    if not path.is_file():
        raise RecipeError(f"backbone.weights = {weights!r}: no such file. Give a path, a URI, `hub:` or null.")
    with path.open("rb") as file:
        return str(path), hashlib.file_digest(file, "sha256").hexdigest()


def fetch(uri: str, path: Path) -> None:
    """Copy a remote file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        system, inner = pyarrow.fs.FileSystem.from_uri(uri)
        with system.open_input_stream(inner) as source, temporary.open("wb") as sink:
            shutil.copyfileobj(source, sink)
        temporary.replace(path)
    except (OSError, ValueError) as error:
        raise RecipeError(f"backbone.weights = {uri!r} cannot be read: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def meta_model_of(recipe: Recipe, classes: int) -> Any:
    """The recipe's segmentor on the meta device."""
    with torch.device("meta"):
        return meta_model(recipe, classes)
