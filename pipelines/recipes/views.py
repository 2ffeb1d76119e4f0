"""What a recipe's training and validation see of a row."""

from __future__ import annotations

import dataclasses

from datasets.tasks.classification import ClassView
from datasets.tasks.detection import DetectionView
from datasets.tasks.panoptic import PanopticView
from datasets.tasks.view import TaskView
from datasets.transforms import TrainView
from pipelines.recipes.recipe import Recipe

VIEWS: dict[str, type[TaskView]] = {
    "classification": ClassView,
    "detection": DetectionView,
    "panoptic": PanopticView,
}


def train_view(recipe: Recipe, flip_pairs: tuple[tuple[int, int], ...] = ()) -> TrainView | TaskView:
    """The seeded views of a training.

    Args:
        flip_pairs: classes of the mask that change places in a flip.
    """
    if recipe.task not in VIEWS:
        return TrainView(**dataclasses.asdict(recipe.view), flip_pairs=flip_pairs)
    return task_view(recipe, train=True)


def val_view(recipe: Recipe) -> TaskView:
    """What validation sees, without chance; segmentation's is the whole row, and no view."""
    return task_view(recipe, train=False)


def task_view(recipe: Recipe, train: bool) -> TaskView:
    """The view of a task that is not segmentation."""
    view = recipe.view
    return VIEWS[recipe.task].of(view.crop, view.scale, view.flip, train=train)
