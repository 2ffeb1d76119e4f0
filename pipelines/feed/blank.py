"""A target that says nothing, for a pass that does not count."""

from __future__ import annotations

import torch

from pipelines.feed.batch import Target
from pipelines.recipes.recipe import Recipe


def blank_target(recipe: Recipe, images: int) -> Target:
    """A target of black images of the crop's size: of class 0, or with one object in the upper left quarter."""
    height, width = recipe.view.crop
    if recipe.task == "segmentation":
        return torch.zeros(images, height, width, dtype=torch.uint8)
    if recipe.task == "classification":
        return torch.zeros(images, dtype=torch.int64)
    mask = torch.zeros(1, height, width, dtype=torch.uint8)
    mask[:, : height // 2, : width // 2] = 1
    one = {
        "boxes": torch.tensor([[0.0, 0.0, width // 2, height // 2]]), "labels": torch.zeros(1, dtype=torch.int64),
        "masks": mask, "seed": 0,
    }  # fmt: skip
    if recipe.task == "panoptic":
        one["semantic"] = torch.zeros(height, width, dtype=torch.uint8)
    return [dict(one) for _ in range(images)]
