"""A chain of stages: checked whole before anything starts, then trained in turn, weights handed on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pipelines.cluster.early import start_early
from pipelines.cluster.nodes import check_nodes
from pipelines.cluster.session import quiet, ray_cluster
from pipelines.cluster.sizes import Sizes
from pipelines.driver.checks import check_model, check_share
from pipelines.driver.fit import fit
from pipelines.driver.jobs import make_jobs
from pipelines.driver.planned import PlannedStage, plan_stages
from pipelines.driver.weights import Weights, localise
from pipelines.feed.batches import BLOCK_ROWS
from pipelines.recipes.recipe import Recipe
from pipelines.runs.mlflow_client import System, default_uri
from pipelines.runs.results import Result, finished, table
from pipelines.runs.run import Timeline, check_views, keep_recipe, locked, settle
from pipelines.runs.screen import shown
from pipelines.runs.tracker import Tracker

if TYPE_CHECKING:
    from pipelines.training.stage import Feed

SAMPLE = "sample:"


def run_recipe(recipe: Recipe, feed: Feed | None = None) -> list[Result]:
    """Run all stages that are not finished yet; print the table at the end.

    Args:
        feed: gives the batches instead of Ray Data or a DataLoader, see `training.stage.train`.

    Returns:
        One result per stage.

    Raises:
        InputError, DataError, SetupError: bad input, found before a worker starts.
        RunFailed: the training failed.
        Stopped: SIGTERM or Ctrl-C ended it, resumable.
    """
    output = Path(recipe.output).expanduser().resolve()
    folder = output / "runs" / str(recipe.name)
    timeline = Timeline()
    check_model(recipe)
    with locked(folder), contextlib.ExitStack() as session:
        settle(recipe, folder)
        if results := finished(recipe, folder):
            print(f"run {recipe.name} is finished, nothing to do; `name=OTHER` trains anew. It lies in {folder}")
            print(table(results))
            return results
        check_views(folder)
        with timeline.part("checks of the shards"):
            planned = None if recipe.data == SAMPLE else plan_stages(recipe, recipe.data, folder)
        needs_ray = not (recipe.workers.count == 0 and recipe.feed == "torch" and planned)
        with timeline.part("start of Ray"):
            sizes = session.enter_context(
                ray_cluster(recipe.workers, partial(store_bytes, recipe), early=start_early) if needs_ray else alone()
            )
        if planned is None:
            from pipelines.shards.sample import sample_shards

            with timeline.part("the sample and its shards"):
                planned = plan_stages(recipe, str(sample_shards(output)), folder)
        with timeline.part("checks of the cluster"):
            check_share(recipe, sizes)
            weights = localise(recipe.backbone.weights, output)
            if needs_ray:
                check_nodes(folder, recipe.tracking or default_uri(output))
            keep_recipe(recipe, folder)
        with timeline.part("MLflow"):
            tracker = Tracker(recipe, output, folder)
        with timeline.part("training"):
            train_stages(recipe, planned, folder, sizes, weights, tracker, feed)
        results = finished(recipe, folder)
        with timeline.part("end of Ray"):
            session.close()
        timeline.write(folder)
    print(table(results))
    print(f"\nLook at it:  {tracker.ui_command()}")
    return results


@contextlib.contextmanager
def alone() -> Iterator[Sizes]:
    """This process only, without a Ray session."""
    quiet()
    yield Sizes(0, int(torch.cuda.is_available()), 1.0, 0, 1.0)


def store_bytes(recipe: Recipe, sizes: Sizes) -> int:
    """Object store of a local session: the blocks in flight, several times over."""
    block = BLOCK_ROWS * recipe.view.crop[0] * recipe.view.crop[1] * 4
    tasks = max(1, sizes.count) * sizes.feed_tasks
    return max(256 << 20, min(8 << 30, 32 * tasks * block))


def train_stages(
    recipe: Recipe,
    planned: Sequence[PlannedStage],
    folder: Path,
    sizes: Sizes,
    weights: Weights,
    tracker: Tracker,
    feed: Feed | None,
) -> None:
    """Train the stages that are not done, on one group of workers.

    Raises:
        InputError: a worker found its input at fault.
        RunFailed: the workers failed for good, or the loss stopped being finite.
    """
    tracker.resume()
    with tracker.sending([plan.stage.name for plan in planned]):
        jobs, followed = make_jobs(recipe, planned, folder, sizes, weights, System(tracker.uri).sample)
        with shown(followed):
            fit(jobs, folder, feed)
