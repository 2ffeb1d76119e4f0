"""A chain of stages: checked whole before anything starts, then trained in turn, weights handed on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.cluster.device import device_here
from pipelines.cluster.early import start_early
from pipelines.cluster.nodes import check_nodes
from pipelines.cluster.session import quiet, ray_cluster
from pipelines.cluster.sizes import Sizes, joins
from pipelines.driver.checks import check_known_share, check_model, check_share
from pipelines.driver.estimate import check_gpus
from pipelines.driver.fit import fit
from pipelines.driver.gauges import gauged
from pipelines.driver.guard import check_guard
from pipelines.driver.jobs import make_jobs
from pipelines.driver.opening import warn_of_small_shares, warn_without_validation
from pipelines.driver.packing import pack_last
from pipelines.driver.places import check_room
from pipelines.driver.planned import PlannedStage, plan_stages
from pipelines.driver.start import start_of
from pipelines.driver.weights import Weights
from pipelines.feed.batches import BLOCK_ROWS
from pipelines.recipes.recipe import Recipe, counts_of, splits_of
from pipelines.recipes.tasks import SEGMENTATION
from pipelines.runs.folder import RunFolder
from pipelines.runs.mlflow_client import System, default_uri
from pipelines.runs.mlflow_faults import check_address
from pipelines.runs.results import Result, final_weights, finished, table
from pipelines.runs.run import Timeline, check_views, keep_recipe, settle
from pipelines.runs.screen import shown
from pipelines.runs.store import Place, held
from pipelines.runs.tracker import Tracker
from pipelines.runs.where import address_of, is_bucket, local_output

if TYPE_CHECKING:
    from pipelines.training.stage import Feed

SAMPLE = Recipe.data


def run_recipe(recipe: Recipe, feed: Feed | None = None) -> list[Result]:
    """Run all stages that are not finished yet; print the table at the end.

    Args:
        feed: gives the batches instead of Ray Data or a DataLoader, see `training.stage.train`.

    Returns:
        One result per stage.

    Raises:
        InputError, DataError, SetupError: bad input, found before a worker starts.
        RunFailed: the training failed.
        Stopped: SIGTERM or Ctrl-C ended it; the same call continues.
    """
    output = local_output(recipe.output)
    timeline = Timeline()
    needs_ray = not (recipe.workers.count == 0 and recipe.feed == "torch")
    if not needs_ray and recipe.workers.feed_tasks:
        check_guard()
    check_model(recipe)
    check_address(recipe.tracking or default_uri(output))
    with held(recipe) as place, contextlib.ExitStack() as session:
        folder = place.folder
        settle(recipe, folder)
        if results := finished(recipe, folder):
            print(f"{recipe.name} is finished, nothing to do; `name=OTHER` trains again. It is in {address_of(recipe)}")
            print(table(results))
            return results
        weights, planned = check_files(recipe, output, folder, timeline)
        with timeline.part("start of Ray"):
            sizes = session.enter_context(ray_for(recipe) if needs_ray else alone(recipe))
        if planned is None:
            planned = plan_sample(recipe, output, folder, timeline, weights)
        with timeline.part("checks of the cluster"):
            check_room(recipe, folder, planned)
            check_share(recipe, sizes)
            warn_of_small_shares(recipe, sizes)
            check_gpus(recipe, max(len(plan.train.classes) for plan in planned), sizes)
            if needs_ray:
                splits = [uri for plan in planned for uri in (plan.train_uri, plan.val_uri)]
                bucket = address_of(recipe) if is_bucket(recipe.output) else None
                check_nodes(folder, recipe.tracking or default_uri(output), splits, bucket)
            keep_recipe(recipe, folder)
        tracker = Tracker(recipe, output, folder, bring=place.bring)
        with timeline.part("MLflow"):
            say("MLflow", "is opened")
            tracker.resume()
        with timeline.part("training"):
            say("workers", "start") if needs_ray else say("training", "begins, in this process")
            train_stages(recipe, planned, place, sizes, weights, tracker, feed)
        results = finished(recipe, folder)
        with timeline.part("end of Ray"):
            session.close()
        timeline.write(folder)
    print(table(results))
    print(f"\nLook at it:  {tracker.ui_command()}")
    return results


def check_files(
    recipe: Recipe, output: Path, folder: Path, timeline: Timeline
) -> tuple[Weights, list[PlannedStage] | None]:
    """What can be known before Ray starts: the weights, and the stages; None for the sample's, which Ray writes.

    Raises:
        InputError, DataError: what the recipe names is not there, or does not fit.
    """
    check_views(folder)
    warn_without_validation(recipe)
    with timeline.part("checks of the weights"):
        check_known_share(recipe)
        weights = find_start(recipe, output)
    with timeline.part("checks of the shards"):
        say("shards", "are checked")
        return weights, None if recipe.data == SAMPLE else plan_stages(recipe, recipe.data, folder, seen=weights.seen)


def plan_sample(recipe: Recipe, output: Path, folder: Path, timeline: Timeline, weights: Weights) -> list[PlannedStage]:
    """The stages on the bundled sample, whose shards are written where they are missing."""
    from pipelines.shards.sample import sample_shards

    with timeline.part("the sample and its shards"):
        return plan_stages(recipe, str(sample_shards(output, splits_of(recipe))), folder, seen=weights.seen)


def say(what: str, happens: str) -> None:
    """Tell what happens before the first line of the record, in its columns."""
    print(f"{what:>18}  {happens}", flush=True)


def find_start(recipe: Recipe, output: Path) -> Weights:
    """As `start_of`, told on the screen.

    Raises:
        InputError: there are none, or they do not fit.
    """
    if recipe.backbone.weights is not None:
        say("weights", f"{recipe.backbone.weights} are compared with {recipe.backbone.name}")
    elif recipe.weights is not None:
        say("weights", f"{recipe.weights} are compared with the model")
    weights = start_of(recipe, output)
    say_taken(weights)
    return weights


def say_taken(weights: Weights) -> None:
    """Tell what of a file of weights is taken, what is left, and what it lacks."""
    for what, text in weights.taken.items():
        say("weights", f"{what}: {text}")


def ray_for(recipe: Recipe) -> contextlib.AbstractContextManager[Sizes]:
    """The Ray session of a run."""
    say("Ray", "is joined" if joins() else "starts")
    store = partial(store_bytes, recipe)
    return ray_cluster(recipe.workers, store, early=start_early, counts=counts_of(recipe))


@contextlib.contextmanager
def alone(recipe: Recipe) -> Iterator[Sizes]:
    """This process only, with loader processes where the recipe asks for them, without a Ray session."""
    quiet()
    gpus = recipe.workers.gpus
    yield Sizes(0, int(device_here(gpus).type == "cuda"), 1.0, recipe.workers.feed_tasks or 0, 1.0)


def store_bytes(recipe: Recipe, sizes: Sizes) -> int:
    """Object store of a local session: the blocks in flight, several times over, up to 8 GiB for each worker."""
    block = BLOCK_ROWS * recipe.view.crop[0] * recipe.view.crop[1] * 4
    return max(256 << 20, max(1, sizes.count) * min(8 << 30, 32 * sizes.feed_tasks * block))


def train_stages(
    recipe: Recipe,
    planned: Sequence[PlannedStage],
    place: Place,
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
    with place.followed(), tracker.sending([plan.stage.name for plan in planned]):
        jobs, followed = make_jobs(recipe, planned, place.folder, sizes, weights, System().sample)
        place.push()  # workers take it up
        with shown(followed), gauged(str(recipe.name), jobs, len(planned) - len(jobs)), place.caught_up():
            fit(jobs, place.folder, feed)
        if recipe.mlflow_model and recipe.task == SEGMENTATION:
            place.bring(final_weights(RunFolder(place.folder).stage(recipe.stages[-1].name)))
            pack_last(recipe, place.folder)
