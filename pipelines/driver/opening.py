"""The first line of a run, and what can be found wrong with it before PyTorch and Ray are imported."""

from __future__ import annotations

import sys

from pipelines.base.errors import InputError
from pipelines.cluster.nodes import takes_a_file
from pipelines.cluster.sizes import Sizes
from pipelines.driver.planned import check_splits
from pipelines.driver.weights import WHOLE, find_weights
from pipelines.recipes.recipe import Recipe
from pipelines.runs.results import finished
from pipelines.runs.where import address_of, is_bucket, local_output


def open_run(recipe: Recipe) -> None:
    """Say what begins and where it is; look at the files that the recipe names.

    Raises:
        InputError, DataError: a file is missing, or is not what the recipe needs.
    """
    where = address_of(recipe)
    print(f"{recipe.name} in {where}: checks of recipe, weights and shards, then PyTorch is imported", flush=True)
    if is_bucket(recipe.output):
        if why := takes_a_file(where):
            raise InputError(f"output: {why}")
    elif finished(recipe, local_output(recipe.output) / "runs" / str(recipe.name)):
        return
    find_weights(recipe.backbone.weights)
    find_weights(recipe.weights, WHOLE)
    if recipe.data != Recipe.data:  # the sample is drawn later
        for _ in check_splits(recipe, recipe.data):
            pass


def warn_without_validation(recipe: Recipe) -> None:
    """Say so where no stage validates."""
    if not any(stage.val for stage in recipe.stages):
        name = recipe.stages[-1].name
        print(
            "warning: no stage has validation shards, so there will be no score, no best checkpoint and no pictures; "
            f"name some with stages.{name}.val=…",
            file=sys.stderr,
            flush=True,
        )


FEW = 4  # images of a GPU and step, below which launching and talking take longer than computing


def warn_of_small_shares(recipe: Recipe, sizes: Sizes) -> None:
    """Say so where GPUs get so few images that fewer GPUs would be about as fast."""
    share = recipe.batch // max(1, sizes.count)
    if not sizes.gpus or sizes.count < 2 or share >= FEW:
        return
    fewer = max(n for n in range(1, sizes.count) if recipe.batch % n == 0 and (recipe.batch // n >= FEW or n == 1))
    print(
        f"warning: {share} image(s) of the batch of {recipe.batch} for each of {sizes.count} GPUs: a step is too short "
        f"for them. workers.count={fewer} takes about as long; a larger batch (batch=…, another run) uses them",
        file=sys.stderr,
        flush=True,
    )
