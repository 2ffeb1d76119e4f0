"""Validation of a task that is not segmentation: what a model predicts on all rows of a split, and the scores of that.

Each task has a tally in a file of its own, which knows what is counted; here rows are read, each exactly once, and the
workers' parts come together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn

from datasets.shards import Shards
from pipelines.feed.ahead import lane_to, under_way
from pipelines.feed.batch import Batch
from pipelines.feed.plan import open_shards
from pipelines.feed.validation import read_views, view_batches
from pipelines.recipes.recipe import Recipe
from pipelines.recipes.views import val_view
from pipelines.scoring.scored import Scored
from segmodels.precision import autocast


class Tally(Protocol):
    """What one worker counts of a split, and the scores of what all have counted."""

    def add(self, outputs: Any, batch: Batch, rows: Sequence[int]) -> None:
        """Count what a model gives for a batch of these rows."""

    def sent(self) -> Any:
        """What was counted, to be sent to the others."""

    def scored(self, parts: Sequence[Any]) -> Scored:
        """The scores of what all workers sent.

        Raises:
            RuntimeError: a row is missing, or is there twice.
        """


def tally_of(recipe: Recipe, shards: Shards) -> Tally:
    """An empty tally of a recipe's task."""
    if recipe.task == "classification":
        from pipelines.scoring.classification import ClassTally

        return ClassTally(shards)
    if recipe.task == "detection":
        from pipelines.scoring.detection import DetectionTally

        return DetectionTally(shards)
    from pipelines.scoring.panoptic import PanopticTally
    from segmodels.tasks.panoptic import panoptic_keys

    return PanopticTally(shards, panoptic_keys(recipe.head).rule())


def validate_task(
    model: nn.Module,
    recipe: Recipe,
    uri: str,
    device: torch.device,
    rank: int,
    world: int,
    precision: str,
    beat: Callable[[], object] = lambda: None,
) -> Scored:
    """The scores of ALL rows of the shards, over the workers; the same on each of them, whatever their number.

    As in `validate`, on CPUs one thread computes each batch.

    Raises:
        RuntimeError: not each row was counted exactly once.
    """
    model.eval()
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    shards, view = open_shards(uri), val_view(recipe)
    tally = tally_of(recipe, shards)
    mine = view_batches(shards, view, recipe.inference.batch)[rank::world]
    beat()
    with (
        torch.inference_mode(),
        autocast(device, precision),
        under_way(read_views(shards, mine, view), lane_to(device, channels_last=True)) as batches,
    ):
        for rows, batch in zip(mine, batches, strict=True):
            batch = batch.to(device, channels_last=device.type == "cuda")
            tally.add(model(batch.image), batch, rows)
            beat()
    torch.set_num_threads(threads)
    return scored_together(tally, rank, world)


def scored_together(tally: Tally, rank: int, world: int) -> Scored:
    """The scores of what all workers have counted, which the first one computes."""
    if world == 1:
        return tally.scored([tally.sent()])
    parts: list[Any] | None = [None] * world if rank == 0 else None
    dist.gather_object(tally.sent(), parts)
    found = [tally.scored(parts) if parts is not None else None]
    dist.broadcast_object_list(found)
    assert found[0] is not None
    return found[0]
