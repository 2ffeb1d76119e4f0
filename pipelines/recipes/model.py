"""What a recipe names: its segmentor, and how this predicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import nn

from pipelines.recipes.protocols import PROTOCOLS
from pipelines.recipes.recipe import InferenceSpec, Recipe
from pipelines.recipes.tasks import SEGMENTATION
from pipelines.recipes.views import val_view
from segmodels import loading
from segmodels.heads.lean import set_recompute
from segmodels.inference import Inference, protocol
from segmodels.segmentor import Segmentor, build_segmentor
from segmodels.tasks.catalog import build_task_model
from segmodels.tasks.panoptic import PanopticKeys

META: dict[str, Segmentor] = {}


def train_mode(model: Segmentor, frozen: Collection[str] = ()) -> None:
    """Training mode, in which frozen norms keep their running statistics and normalise by them.

    Args:
        frozen: names of these norms, as `frozen_norms` gives them.
    """
    model.train()
    for name in frozen:
        model.get_submodule(name).eval()


def pretrained_by(recipe: Recipe) -> Literal["", "backbone", "all"]:
    """What of the model begins its first stage with weights of a training."""
    return "all" if recipe.weights else "backbone" if recipe.backbone.weights else ""


def frozen_norms(model: Segmentor, recipe: Recipe, pretrained: Literal["", "backbone", "all"]) -> list[str]:
    """Names of the batch norms that `optim.freeze_norm` freezes: those that come with statistics of a training.

    Norms of a trunk's context learn, whatever the trunk's weights: those of plain trunks do not have them.

    Args:
        pretrained: what does: nothing, the backbone, or the whole model, of a stage before or of `weights`.
    """
    if not recipe.optim.freeze_norm or not pretrained:
        return []
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    added = tuple(f"backbone.trunk.{start}" for start in model.backbone.context)
    return [
        name for name in norms if pretrained == "all" or (name.startswith("backbone.") and not name.startswith(added))
    ]


def count_norms(model: Segmentor) -> int:
    """Batch norms of a model."""
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def inference_of(recipe: Recipe, spec: InferenceSpec) -> Inference:
    """A recipe's way to predict, its window defaulting to the training crop."""
    return loading.inference_of(dataclasses.asdict(spec), recipe.view.crop)


def spec_by(name: str, spec: InferenceSpec) -> InferenceSpec:
    """A recipe's `inference`, with what a protocol of the table sets; of another mode, without window and stride."""
    chosen = PROTOCOLS[name]
    if chosen.mode is not None and chosen.mode != spec.mode:
        spec = dataclasses.replace(spec, mode=chosen.mode, window=None, stride=None)
    given = {key: getattr(chosen, key) for key in ("scales", "flip")}
    return dataclasses.replace(spec, **{key: value for key, value in given.items() if value is not None})


def inference_by(name: str, recipe: Recipe) -> Inference:
    """How a protocol of the table predicts; the recipe's `inference` says what the protocol leaves open."""
    given = inference_of(recipe, spec_by(name, recipe.inference))
    return dataclasses.replace(given, average=PROTOCOLS[name].average)


def build_model(recipe: Recipe, classes: int, weights: str | None = None) -> Segmentor:
    """The recipe's model: a segmentor, or what another task has.

    Args:
        classes: K.
        weights: a local file of the backbone's, or `hub`; None for random ones.
    """
    backbone = dataclasses.asdict(recipe.backbone) | {"weights": weights}
    if recipe.task != SEGMENTATION:
        number = classes - (recipe.task == "detection")  # whose first class is the background
        other: Any = build_task_model(recipe.task, num_classes=number, backbone=backbone, head=recipe.head)
        return other
    model = build_segmentor(
        num_classes=classes, crop=recipe.view.crop, backbone=backbone, head=recipe.head, aux=recipe.aux
    )
    set_recompute(model, recipe.workers.recompute)
    return model


def meta_model(recipe: Recipe, classes: int) -> Segmentor:
    """The recipe's segmentor on the meta device, built once for a model; its mode is as the last caller left it."""
    parts = (recipe.task, recipe.backbone, recipe.view.crop, recipe.head, recipe.aux, classes)
    if repr(parts) not in META:
        META.clear()  # a study checks one model after the other
        with torch.device("meta"):
            META[repr(parts)] = build_model(recipe, classes)
    set_recompute(META[repr(parts)], recipe.workers.recompute)
    return META[repr(parts)]


def few_classes(recipe: Recipe) -> int:
    """A number of classes for a model of which only what does not depend on it is looked at."""
    return int(recipe.head.get("stuff", PanopticKeys.stuff)) + 1 if recipe.task == "panoptic" else 2


def how(recipe: Recipe) -> str:
    """The protocol of the scores that stages print."""
    if recipe.task != SEGMENTATION:
        return val_view(recipe).words
    return protocol(inference_of(recipe, recipe.validation or recipe.inference))
