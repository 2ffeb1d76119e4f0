"""Checks of the recipe's model and batch, before anything starts."""

from __future__ import annotations

import torch

from pipelines.base.errors import InputError
from pipelines.cluster.sizes import Sizes, joins, machine
from pipelines.recipes.model import frozen_norms, meta_model, spec_by, train_mode
from pipelines.recipes.protocols import of_protocol
from pipelines.recipes.recipe import Recipe, check_split, norm_batch
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
        for name in recipe.protocols:
            with of_protocol(name):
                check_window(recipe, spec_by(name, recipe.inference), model.window)
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from None
    if forgotten := sorted(set(outputs) - set(recipe.loss)):
        raise InputError(
            f"loss has terms for {sorted(recipe.loss)}, but the model gives {sorted(outputs)}: every output needs "
            f"a term, or it never learns. Add loss.{forgotten[0]}={{TERM: WEIGHT}}, e.g. {{cross_entropy: 0.4}}; a "
            "weight of 0 leaves it out"
        )


def check_known_share(recipe: Recipe) -> None:
    """As `check_share`, as far as it is known before Ray starts; on a cluster only where the recipe counts workers.

    Raises:
        InputError: as `check_share`.
    """
    workers = recipe.workers
    if joins() and (workers.count is None or workers.gpus is None):
        return
    gpus = machine()[1] if workers.gpus is None else workers.gpus
    check_parts(recipe, max(1, (gpus or 1) if workers.count is None else workers.count), bool(gpus))


def check_share(recipe: Recipe, sizes: Sizes) -> None:
    """The batch must fall into equal parts, each enough for the head's norms, and CUDA graphs be asked of GPUs.

    Raises:
        InputError: it does not, a single image cannot be normalised, or there is no GPU.
    """
    check_parts(recipe, max(1, sizes.count), bool(sizes.gpus))


def check_parts(recipe: Recipe, world: int, on_gpus: bool) -> None:
    """As `check_share`, for so many workers."""
    if recipe.workers.graphs and not on_gpus:
        raise InputError("workers.graphs = true: CUDA graphs need GPUs; allowed on CPUs: workers.graphs=false")
    check_split(recipe.batch, world)
    if norm_batch(recipe, world) == 1:
        try:
            model = meta_model(recipe, 2)
            train_mode(model, frozen_norms(model, recipe, "backbone" if recipe.backbone.weights else ""))
            model(torch.zeros(1, 3, *recipe.view.crop, dtype=torch.uint8, device="meta"))
        except ValueError as error:
            raise InputError(f"{error} (batch, workers.count, workers.micro_batch)") from None
