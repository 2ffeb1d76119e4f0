"""Checks of the recipe's model and batch, before anything starts."""

from __future__ import annotations

import torch

from pipelines.base.errors import InputError
from pipelines.cluster.sizes import Sizes
from pipelines.recipes.model import frozen_norms, meta_model, train_mode
from pipelines.recipes.recipe import Recipe, micro_batch
from pipelines.scoring.checks import check_window
from segmodels.losses import Objective


def check_model(recipe: Recipe) -> None:
    """Build the model without memory, so that a wrong keyword is found before anything starts.

    Raises:
        InputError: what the builders refuse.
    """
    try:
        model = meta_model(recipe, 2)
        outputs = model.train()(torch.zeros(2, 3, *recipe.view.crop, dtype=torch.uint8, device="meta"))
        objective = Objective(recipe.loss)
        objective.check(outputs)
        for spec in (recipe.inference, recipe.validation or recipe.inference):
            check_window(recipe, spec, model.window)
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from None
    if forgotten := sorted(set(outputs) - set(recipe.loss)):
        raise InputError(
            f"loss has terms for {sorted(recipe.loss)}, the model gives {sorted(outputs)}: every output needs a term, "
            f"or it never learns. Add loss.{forgotten[0]}={{TERM: WEIGHT}}, e.g. cross_entropy; weight 0 leaves it out"
        )


def check_share(recipe: Recipe, sizes: Sizes) -> None:
    """The global batch must fall into equal parts, each enough for the head's norms.

    Raises:
        InputError: it does not, or one image alone cannot be normalised.
    """
    if recipe.batch % max(1, sizes.count):
        fits = [n for n in range(1, recipe.batch + 1) if recipe.batch % n == 0]
        raise InputError(
            f"batch = {recipe.batch} cannot be split over {sizes.count} workers; workers.count may be {fits}"
        )
    world = max(1, sizes.count)
    if micro_batch(recipe, world) == 1 and not (sizes.gpus and world > 1):  # synchronised norms see all workers' images
        try:
            model = meta_model(recipe, 2)
            train_mode(model, frozen_norms(model, recipe, "backbone" if recipe.backbone.weights else ""))
            model(torch.zeros(1, 3, *recipe.view.crop, dtype=torch.uint8, device="meta"))
        except ValueError as error:
            raise InputError(f"{error} (batch, workers.count, workers.micro_batch)") from None
