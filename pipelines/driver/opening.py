"""The first line of a run, and what can be found wrong with it before PyTorch and Ray are imported."""

from __future__ import annotations

import sys

from pipelines.base.errors import InputError
from pipelines.cluster.nodes import takes_a_file
from pipelines.driver.planned import check_splits
from pipelines.driver.weights import find_weights
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
