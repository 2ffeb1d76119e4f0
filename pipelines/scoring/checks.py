"""Whether a model can predict images of given sizes in the way that is asked for."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from datasets.shards import Shards
from pipelines.base.errors import InputError
from pipelines.recipes.model import inference_of, meta_model
from pipelines.recipes.recipe import InferenceSpec, Recipe
from segmodels.inference import Inference, predict
from segmodels.segmentor import Segmentor


def check_window(recipe: Recipe, spec: InferenceSpec, window: tuple[int, int] | None) -> None:
    """Windows must fit their strides, and of a head that is bound to its crop they must be that crop.

    Raises:
        InputError: they do not, or are not.
    """
    try:
        given = inference_of(recipe, spec).window
    except ValueError as error:
        raise InputError(f"inference: {error}") from None
    if window and spec.mode == "slide" and given != window:
        raise InputError(f"inference.window = {given}: {recipe.head['name']} keeps to its training crop {window}")


def check_sizes(recipe: Recipe, spec: InferenceSpec, name: str, val: Shards) -> None:
    """A head bound to its crop cannot see whole images of another size, and some heads none of few cells.

    Raises:
        InputError: it would have to.
    """
    model = meta_model(recipe, 2).eval()
    window = model.window
    odd = [tuple(map(int, size)) for size in np.unique(val.sizes, axis=0) if tuple(size) != window] if window else []
    if odd and spec.mode == "whole":
        raise InputError(
            f"the head {recipe.head['name']} is bound to its crop {window}, {name} has images of {odd[:3]}: "
            "use sliding windows (inference.mode=slide), or head.resample=true where the head has it"
        )
    if spec.mode == "whole":
        inference = inference_of(recipe, spec)
        for size in {tuple(map(int, val.sizes[val.sizes[:, axis].argmin()])) for axis in (0, 1)}:
            try_size(model, inference, name, size)


def try_size(model: Segmentor, inference: Inference, name: str, size: tuple[int, ...]) -> None:
    """Predict an image of a size at the smallest scale, without computing anything.

    Raises:
        InputError: the head does not take so small a map.
    """
    scale = min(inference.scales)
    smallest = dataclasses.replace(inference, scales=(scale,), flip=False)
    try:
        predict(model, torch.zeros(1, 3, *size, dtype=torch.uint8, device="meta"), smallest)
    except ValueError as error:
        raise InputError(
            f"{name} has an image of {size[0]}x{size[1]} pixels, seen whole at scale {scale}: {error}; or use sliding "
            "windows (inference.mode=slide), to whose size it is padded"
        ) from None
