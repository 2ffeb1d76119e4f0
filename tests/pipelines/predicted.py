"""Checkpoints of random weights for any classes, and pictures, for tests of prediction."""

import cv2
import numpy as np
import torch

from pipelines.recipes.model import build_model
from pipelines.recipes.reading import convert
from pipelines.recipes.recipe import Recipe
from pipelines.runs.checkpoint import Checkpoint, Progress
from segmodels.segmentor import classifier_keys

PAGE = {
    "backbone": {"name": "test_resnet", "output_stride": 32},
    "head": {"name": "fcn", "channels": 16},
    "view": {"crop": [32, 32]},
    "stages": [{"name": "first", "train": "unused", "steps": 1}],
}


def write_checkpoint(path, classes, palette=None, flip_pairs=(), **changes):
    """A checkpoint whose network predicts many classes, and a different one for each picture's colours."""
    recipe = convert(Recipe, PAGE | changes, "")
    torch.manual_seed(0)
    model = build_model(recipe, len(classes))
    with torch.no_grad():
        for name in classifier_keys(model):
            torch.nn.init.normal_(model.get_parameter(name), std=1.0 if name.endswith("weight") else 0.01)
    palette = palette or tuple((5 * k % 256, 90, 255 - k) for k in range(len(classes)))
    Checkpoint(
        model=model.state_dict(), recipe=recipe, stage="first", step=1, progress=Progress(), classes=tuple(classes),
        palette=palette, seen=np.zeros(0, np.int64), flip_pairs=flip_pairs,
    ).write(path)  # fmt: skip
    return path


def picture(seed, size=(48, 64)):
    """Blocks of colours, RGB uint8 (H, W, 3)."""
    blocks = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    return cv2.resize(blocks, size[::-1], interpolation=cv2.INTER_NEAREST)


def write_picture(path, seed, size=(48, 64)):
    """The blocks as a file; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), cv2.cvtColor(picture(seed, size), cv2.COLOR_RGB2BGR))
    return path
