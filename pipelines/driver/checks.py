"""Checks of the recipe's model and batch, before anything starts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipelines.base.errors import InputError
from pipelines.cluster.sizes import Sizes, joins, machine, several
from pipelines.recipes.model import (
    count_norms,
    few_classes,
    frozen_norms,
    meta_model,
    pretrained_by,
    spec_by,
    train_mode,
)
from pipelines.recipes.protocols import of_protocol
from pipelines.recipes.recipe import Recipe, check_split, counts_of, norm_batch
from pipelines.recipes.tasks import SEGMENTATION
from pipelines.recipes.views import train_view, val_view
from pipelines.scoring.checks import check_window
from segmodels.losses import Objective
from segmodels.optim import layer_scales


def check_model(recipe: Recipe) -> None:
    """Build the model without memory, so that a wrong keyword is found before anything starts.

    Raises:
        InputError: what the builders refuse.
    """
    if recipe.task != SEGMENTATION:
        check_task_model(recipe)
        return
    try:
        model = meta_model(recipe, few_classes(recipe))
        outputs = model.train()(torch.zeros(2, 3, *recipe.view.crop, dtype=torch.uint8, device="meta"))
        objective = Objective(recipe.loss)
        objective.check(outputs)
        layer_scales(model, recipe.optim.layer_decay)
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


def check_task_model(recipe: Recipe) -> None:
    """As `check_model`, of a task that is not segmentation.

    Raises:
        InputError: what the builders or the views refuse.
    """
    try:
        layer_scales(meta_model(recipe, few_classes(recipe)), recipe.optim.layer_decay)
        train_view(recipe)
        val_view(recipe)
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from None


def check_known_share(recipe: Recipe) -> None:
    """As `check_share`, as far as it is known before Ray starts; on a cluster only where the recipe counts workers.

    Raises:
        InputError: as `check_share`.
    """
    workers = recipe.workers
    if counts := counts_of(recipe):  # of which a single machine takes only one
        if joins() and workers.gpus is not None:
            check_counts(recipe, counts, bool(workers.gpus))
        return
    if joins() and (workers.count is None or workers.gpus is None):
        return
    gpus = machine()[1] if workers.gpus is None else workers.gpus
    count = (gpus or 1) if workers.number is None else workers.number
    check_parts(recipe, max(1, count), bool(gpus))


def check_share(recipe: Recipe, sizes: Sizes) -> None:
    """The batch must fall into equal parts, each enough for the head's norms, whatever the number of workers.

    Raises:
        InputError: it does not, or a single image cannot be normalised, or norms would see more images with one number
            of workers than with another; or CUDA graphs are asked of CPUs.
    """
    check_counts(recipe, sizes.counts or (max(1, sizes.count),), bool(sizes.gpus))


def check_counts(recipe: Recipe, counts: Sequence[int], on_gpus: bool) -> None:
    """As `check_share`, for each of several numbers of workers."""
    for world in counts:
        check_parts(recipe, world, on_gpus)
    check_norms(recipe, counts)


def check_norms(recipe: Recipe, counts: Sequence[int]) -> None:
    """Of a range of workers, each number must give batch norms the same: other statistics are another training.

    Args:
        counts: the numbers of workers.

    Raises:
        InputError: norms that are not frozen would see other numbers of images at once.
    """
    seen = [norm_batch(recipe, world) for world in counts]
    if len(set(seen)) < 2:
        return
    model = meta_model(recipe, few_classes(recipe))
    frozen = frozen_norms(model, recipe, pretrained_by(recipe))
    if len(frozen) == count_norms(model):
        return
    told = ", ".join(f"{images} with {several(world, 'worker')}" for images, world in zip(seen, counts, strict=True))
    part = recipe.batch // counts[-1]
    synchronised = recipe.norm == "sync"
    cure = "workers.micro_batch=null" if synchronised else f"workers.micro_batch={part}: then each sees {part}"
    raise InputError(
        f"a range of workers (workers.count), but a batch norm would see {told}, which is another training. Give "
        f"{cure}; or one number, such as workers.count={counts[-1]}"
    )


def check_parts(recipe: Recipe, world: int, on_gpus: bool) -> None:
    """As `check_share`, for so many workers."""
    if recipe.workers.graphs and not on_gpus:
        raise InputError("workers.graphs = true: CUDA graphs need GPUs; allowed on CPUs: workers.graphs=false")
    check_split(recipe.batch, world)
    if norm_batch(recipe, world) == 1 and recipe.task == SEGMENTATION:
        try:
            model = meta_model(recipe, few_classes(recipe))
            train_mode(model, frozen_norms(model, recipe, pretrained_by(recipe)))
            model(torch.zeros(1, 3, *recipe.view.crop, dtype=torch.uint8, device="meta"))
        except ValueError as error:
            raise InputError(f"{error} (batch, workers.count, workers.micro_batch)") from None
