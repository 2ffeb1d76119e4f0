"""What a model costs, as metrics of its run: so that MLflow plots cost against mIoU."""

from __future__ import annotations

import dataclasses

import torch

from pipelines.recipes.model import build_model, meta_model
from pipelines.recipes.recipe import Recipe
from pipelines.recipes.tasks import SEGMENTATION
from segmodels.cost import PAPER_SIZES, Cost, conv_matmul_macs, measure, on_meta
from segmodels.segmentor import Segmentor
from segmodels.tasks.catalog import task_cost

COUNTED: dict[str, dict[tuple[int, int], float]] = {}  # of the last model: the stages of a chain have one


def cost_metrics(recipe: Recipe, classes: int, cost: Cost) -> dict[str, float]:
    """`cost/params_M`, and `cost/GMACs_HxW` of one image at the training crop and at the papers' sizes.

    A head that is bound to its crop is built for each size anew, as the papers count it; `cost/params_M` is that of the
    crop. A size that the head does not take is left out. MLflow takes no `@` in a metric's name.

    Args:
        classes: K.
        cost: of the model at its crop.
    """
    sizes = {cost.size: cost.macs / 1e9} | (gmacs_of(recipe, classes) if recipe.task == SEGMENTATION else {})
    return {"cost/params_M": cost.parameters / 1e6} | {f"cost/GMACs_{h}x{w}": value for (h, w), value in sizes.items()}


def cost_of(recipe: Recipe, classes: int) -> Cost:
    """What the recipe's model costs at its crop.

    Args:
        classes: K.
    """
    model = meta_model(recipe, classes)
    return task_cost(model, recipe.view.crop) if recipe.task != SEGMENTATION else measure(model, recipe.view.crop)


def gmacs_of(recipe: Recipe, classes: int) -> dict[tuple[int, int], float]:
    """GMACs of one image at the papers' sizes, counted once for a model."""
    parts = repr((recipe.backbone, recipe.view.crop, recipe.head, classes))
    if parts not in COUNTED:
        COUNTED.clear()
        counted = {size: gmacs_at(recipe, classes, size) for size in PAPER_SIZES}
        COUNTED[parts] = {size: value for size, value in counted.items() if value is not None}
    return COUNTED[parts]


def gmacs_at(recipe: Recipe, classes: int, size: tuple[int, int]) -> float | None:
    """GMACs of one image of a size (h, w) in pixels; None where the head does not take it."""
    try:
        model = model_for(recipe, classes, size)
        with torch.no_grad():
            return conv_matmul_macs(on_meta(model), torch.zeros(1, 3, *size, device="meta")) / 1e9
    except ValueError:
        return None


def model_for(recipe: Recipe, classes: int, size: tuple[int, int]) -> Segmentor:
    """The recipe's model without memory; one that is bound to its crop as if that were `size`."""
    model = meta_model(recipe, classes)
    if model.window is None:
        return model
    other = dataclasses.replace(recipe, view=dataclasses.replace(recipe.view, crop=size))
    with torch.device("meta"):
        return build_model(other, classes)
