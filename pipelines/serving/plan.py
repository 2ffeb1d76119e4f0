"""What images are predicted with: a checkpoint and a way to predict, checked against each other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.recipes.model import meta_model
from pipelines.recipes.reading import convert
from pipelines.recipes.recipe import Recipe
from pipelines.scoring.checks import check_window
from pipelines.scoring.evaluation import override_inference
from segmodels.files import for_use
from segmodels.inference import protocol
from segmodels.loading import inference_of
from segmodels.tiles import PIXELS


@dataclass(frozen=True)
class Plan:
    """How sources are predicted: all that a worker needs to know.

    Args:
        content: of the checkpoint, see `segmodels.files.for_use`.
        path: of the checkpoint, for messages.
        options: of `segmodels.loading.model_of`.
        ids: the value of each class in the masks.
        overlays: whether to draw them.
        every: of a video's frames, each so many-th is predicted.
    """

    content: Mapping[str, Any]
    path: Path
    options: Mapping[str, Any]
    ids: tuple[int, ...]
    overlays: bool = True
    every: int = 1


def plan_prediction(
    path: Path,
    checkpoint: Mapping[str, Any],
    ids: tuple[int, ...],
    overrides: Mapping[str, Any] | None = None,
    precision: str = "auto",
    pixels: int = PIXELS,
    overlays: bool = True,
    every: int = 1,
) -> Plan:
    """Check a checkpoint and a way to predict against each other, without computing anything.

    Args:
        path: of the checkpoint.
        checkpoint: what `segmodels.files.read` gives.
        ids: the value of each class in the masks.
        overrides: keys of `inference` and their values, as a recipe's page has them, in place of the recipe's.
        precision: `auto`, `bf16`, `fp16` or `fp32`.
        pixels: a larger image is predicted in tiles of about so many.
        overlays: whether to draw them.
        every: of a video's frames, each so many-th is predicted.

    Raises:
        InputError: an unknown key, a bad value, or a window that the head does not take.
    """
    recipe = convert(Recipe, checkpoint["recipe"], "")
    spec = override_inference(recipe.inference, overrides or {})
    check_window(recipe, spec, meta_model(recipe, 2).window)
    options = {"precision": precision, "inference": asdict(spec), "pixels": pixels}
    return Plan(for_use(checkpoint), path, options, ids, overlays, every)


def about(plan: Plan) -> dict[str, Any]:
    """What the results of a plan depend on: what no resume may change."""
    how = inference_of(plan.options["inference"], plan.content["recipe"]["view"]["crop"])
    with plan.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "checkpoint": digest, "inference": protocol(how), "precision": plan.options["precision"],
        "tile pixels": plan.options["pixels"], "classes": plan.content["classes"], "values": plan.ids,
        "every": plan.every,
    }  # fmt: skip
