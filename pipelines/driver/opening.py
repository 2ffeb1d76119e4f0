"""The first line of a run, and what can be found wrong with it before PyTorch and Ray are imported."""

from __future__ import annotations

import sys

from pipelines.cluster.nodes import output_folder
from pipelines.driver.planned import check_splits
from pipelines.driver.weights import find_weights
from pipelines.recipes.recipe import Recipe
from pipelines.runs.results import finished


def open_run(recipe: Recipe) -> None:
    """Say what begins and where it is; look at the files that the recipe names.

    Raises:
        InputError, DataError: a file is missing, or is not what the recipe needs.
    """
    folder = output_folder(recipe.output) / "runs" / str(recipe.name)
    print(f"{recipe.name} in {folder}: checks of recipe, weights and shards, then PyTorch is imported", flush=True)
    if finished(recipe, folder):
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
