"""Checkpoints of random weights of the other tasks, which find something in every image, for tests of what is shown."""

import numpy as np
import torch

from datasets.manifest import read_manifest
from pipelines.recipes.model import build_model
from pipelines.recipes.reading import convert
from pipelines.recipes.recipe import Recipe
from pipelines.runs.checkpoint import Checkpoint, Progress

REGIONS = {
    "channels": 8, "anchors": [8, 16, 24, 32, 48], "proposals": [12, 6], "anchor_samples": 8, "box_samples": 8,
    "representation": 8, "mask_channels": 4, "canonical": 28,
}  # fmt: skip
PAGES = {
    "classification": {"head": {"name": "classifier"}, "view": {"crop": [32, 32], "scale": [0.3, 1.0]}},
    "detection": {"head": {"name": "mask_rcnn"} | REGIONS, "view": {"crop": [40, 64]}},
    "panoptic": {
        "head": {"name": "panoptic_fpn", "semantic_channels": 4, "stuff_area": 16} | REGIONS,
        "view": {"crop": [40, 64]},
    },
}
SPLITS = {"classification": "classes", "detection": "coco_instances", "panoptic": "coco_panoptic"}


def recipe_of(task, **changes):
    """A small recipe of a task."""
    page = {
        "task": task, "backbone": {"name": "test_resnet", "output_stride": 32}, "overlays": 2,
        "inference": {"batch": 2}, "stages": [{"name": "first", "train": "unused", "steps": 1}],
    }  # fmt: skip
    return convert(Recipe, page | PAGES[task] | changes, "")


def model_of(recipe, classes):
    """Its model; region heads are sure of the first class of things everywhere."""
    torch.manual_seed(0)
    model = build_model(recipe, classes).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("cls_score.bias"):
                parameter[1] += 8
    return model


def write_task_checkpoint(path, task, shards, **changes):
    """A checkpoint that knows the classes of the split that the task has in `task_shards`."""
    manifest, recipe = read_manifest(str(shards / SPLITS[task] / "val")), recipe_of(task, **changes)
    Checkpoint(
        model=model_of(recipe, len(manifest.classes)).state_dict(), recipe=recipe, stage="first", step=1,
        progress=Progress(), classes=tuple(manifest.classes), palette=tuple(map(tuple, manifest.palette)),
        seen=np.zeros(0, np.int64), flip_pairs=(),
    ).write(path)  # fmt: skip
    return path
