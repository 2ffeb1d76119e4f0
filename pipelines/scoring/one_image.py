"""What a model of another task than segmentation predicts of one image, in pixels of the image as it is."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from pipelines.base.pictures import within
from pipelines.recipes.recipe import Recipe
from pipelines.recipes.views import val_view
from pipelines.scoring.average_precision import Detections
from pipelines.scoring.detection import restored
from pipelines.scoring.panoptic import PanopticPicture, picture_of
from segmodels.tasks.panoptic import panoptic_keys

MERGED = 1 << 22
"""Most pixels of a panoptic picture that is merged at its full size: it takes a float for each class and pixel."""

Prediction = np.ndarray | Detections | PanopticPicture
"""Probabilities of the classes float32 (K,), objects, or a panoptic picture."""


@torch.inference_mode()
def predict_one(model: nn.Module, recipe: Recipe, classes: tuple[str, ...], image: np.ndarray) -> Prediction:
    """Predict an image by the view of validation.

    Args:
        model: of the recipe, in evaluation mode.
        recipe: of a task other than segmentation.
        classes: K names.
        image: uint8 (H, W, 3).

    Returns:
        What the recipe's task predicts, see `Prediction`; the row of `Detections` is 0.
    """
    if recipe.task == "classification":
        return classified(model, recipe, image)
    pixels, inside = val_view(recipe).alone(image)
    canvas, size = (pixels.shape[0], pixels.shape[1]), (image.shape[0], image.shape[1])
    (output,) = model(on_device(model, pixels))
    if recipe.task == "detection":
        return restored(output, inside, size, 0)
    return merged_at(output, canvas, inside, size, recipe, classes)


@torch.inference_mode()
def classified(model: nn.Module, recipe: Recipe, image: np.ndarray) -> np.ndarray:
    """Probabilities of the classes of an image, float32 (K,), as of `predict_one`."""
    pixels, _ = val_view(recipe).alone(image)
    logits: Tensor = model(on_device(model, pixels))
    return logits[0].float().softmax(0).cpu().numpy()


def on_device(model: nn.Module, pixels: np.ndarray) -> Tensor:
    """A batch of one image where the model is: uint8 (1, 3, h, w)."""
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].to(next(model.buffers()).device)


def merged_at(
    output: dict[str, Tensor], canvas: tuple[int, int], inside: tuple[int, int], size: tuple[int, int], recipe: Recipe,
    classes: tuple[str, ...],
) -> PanopticPicture:  # fmt: skip
    """The panoptic picture of an image; of a large one it is merged smaller, then enlarged by the nearest pixel.

    Args:
        output: of `PanopticFPN`.
        canvas: height and width of what the model was given.
        inside: of the image in it.
        size: of the image.
        recipe: whose head says what is left out.
        classes: K names.
    """
    share = min(1.0, (MERGED / (size[0] * size[1])) ** 0.5)
    width, height = within(size, max(1, int(size[1] * share)), max(1, int(size[0] * share)))
    found = picture_of(output, canvas, inside, (height, width), panoptic_keys(recipe.head).rule(), classes)
    if (height, width) == size:
        return found
    pixels = cv2.resize(found.pixels.astype(np.int32), size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return PanopticPicture(pixels.astype(np.int64), found.numbers, found.scores)
