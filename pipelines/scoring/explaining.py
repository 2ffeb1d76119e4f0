"""What a head computed on its way to one image's logits: its context maps, and relations of chosen pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.sample import IGNORE
from pipelines.base.errors import InputError
from pipelines.recipes.model import inference_of, meta_model
from pipelines.recipes.recipe import Recipe
from pipelines.runs.checkpoint import Checkpoint
from pipelines.scoring.subject import Box, Subject, choose_pixels, cut, view
from segmodels.cards import given_by
from segmodels.heads.catalog import HEADS
from segmodels.heads.maps import KINDS, PIXEL, Maps
from segmodels.inference import predict
from segmodels.segmentor import Segmentor

PRESENCE = {"presence": "sigmoid", "class_prior": "share"}
"""Output of a head that tells which classes an image holds -> what it is: logits of presence, or shares of pixels."""
FIELDS = ("relation", "even", "true")
COUNTED = {"relation", "global", "local", "position", "lambda_", *PRESENCE}
"""Maps and outputs of which numbers are made over a split."""


@dataclass(frozen=True)
class PixelRelations:
    """One pixel's relations to all cells.

    Attributes:
        x, y: of the pixel in the image.
        label: its true class, or `IGNORE`.
        maps: name -> (h, w) weights.
        true: (h, w), the weights of the true relation, or None where the pixel has no label.
        own: name, or "true" -> the share of the weight on labelled pixels that lies on the own class of the pixel's
            cell, as `OwnClass` defines it; nothing where that has no label.
        even: name -> that share with equal weights between the same cells, where the head told which these are.
    """

    x: int
    y: int
    label: int
    maps: dict[str, np.ndarray]
    true: np.ndarray | None
    own: dict[str, float]
    even: dict[str, float]


@dataclass(frozen=True)
class Explained:
    """An image with what a model makes of it, arrays on the CPU.

    Attributes:
        subject: the image.
        prediction: uint8 (H, W), by the recipe's protocol.
        box: the part that the head was shown for its maps: top, left, height, width in pixels.
        image, mask: of the box; the mask is None without labels.
        maps: name -> array without the batch axis; relations of pixels are in `pixels`.
        pixels: their relations; empty where the head has none.
        presence: of each class (K,), a probability or a share, or None; `presence_kind` says which.
    """

    subject: Subject
    prediction: np.ndarray
    box: Box
    image: np.ndarray
    mask: np.ndarray | None
    maps: dict[str, np.ndarray]
    pixels: list[PixelRelations] = field(default_factory=list)
    presence: np.ndarray | None = None
    presence_kind: str = ""


def names_of_maps(recipe: Recipe) -> list[str]:
    """Names of the context maps that a recipe's head gives, and of its outputs that tell presence; computes nothing."""
    model, maps = meta_model(recipe, 2).eval(), Maps()
    with torch.no_grad():
        outputs = model.head(model.features(torch.zeros(1, 3, *recipe.view.crop, device="meta")), maps)
    return [*maps, *(name for name in PRESENCE if name in outputs)]


def check_head(recipe: Recipe, path: Path) -> list[str]:
    """`names_of_maps`, if there are any.

    Raises:
        InputError: the head has no maps.
    """
    names = names_of_maps(recipe)
    if not names:
        raise InputError(
            f"{path}: the head {recipe.head['name']} gives no context maps ({reason(recipe.head['name'])}). Heads that "
            f"do: {', '.join(sorted(name for name in HEADS if given_by(name)[0]))}. Predictions of two models can be "
            "compared all the same: --against CHECKPOINT"
        )
    return names


def check_measured(recipe: Recipe, path: Path) -> None:
    """Make sure that a head has numbers to measure.

    Raises:
        InputError: it has none.
    """
    if not COUNTED & set(names_of_maps(recipe)):
        heads = [name for name in sorted(HEADS) if COUNTED & {*given_by(name)[0], *given_by(name)[1]}]
        raise InputError(
            f"{path}: the head {recipe.head['name']} as the recipe builds it has neither presence, nor relations "
            f"between all cells, nor an attention tensor to measure. Heads that have one: {', '.join(heads)}"
        )


def reason(head: str) -> str:
    """Why a checkpoint's head gives no maps."""
    if given := given_by(head)[0]:
        return f"with these keywords it lacks the part that gives {', '.join(given)}"
    return "it pools, filters or factorises its context, and holds no weights between pixels or parts that have a place"


def explain(model: Segmentor, recipe: Recipe, subject: Subject, pixels: Sequence[tuple[int, int]]) -> Explained:
    """Predict an image, and ask its head for all of its maps, in float32.

    The trunk runs once for the maps, the head once for each pixel.

    Args:
        model: in evaluation mode.
        recipe: of the model.
        subject: the image.
        pixels: (x, y) whose relations are asked for; some are chosen if there are none.

    Raises:
        InputError: the pixels do not fit into the crop to which the head is bound.
    """
    device = model.mean.device
    prediction = predict_image(model, recipe, subject.image)
    labels = subject.mask if subject.mask is not None else prediction
    if not pixels and model.window:
        box = view(labels.shape, model.window, [])
        top, left = box[:2]
        pixels = [(x + left, y + top) for x, y in choose_pixels(cut(labels, box, IGNORE))]
    pixels = list(pixels) or choose_pixels(labels)
    box = view(labels.shape, model.window, pixels)
    image = cut(subject.image, box, model.mean.flatten().tolist())
    mask = None if subject.mask is None else cut(subject.mask, box, IGNORE)
    with torch.no_grad():
        features = model.features(torch.from_numpy(image).permute(2, 0, 1)[None].to(device))
        shares = None if mask is None else class_shares(mask, model.num_classes, features[-1].shape[2:]).to(device)
        passes = [(x, y, *ask(model, features, (x, y), box, shares)) for x, y in pixels]
    maps, outputs = passes[0][2:]
    kind = next((name for name in PRESENCE if name in outputs), "")
    return Explained(
        subject, prediction, box, image, mask,
        {name: array(value) for name, value in maps.items() if KINDS[name] != PIXEL},
        [related(x, y, found, labels) for x, y, found, _ in passes if any(KINDS[n] == PIXEL for n in found)],
        array(told(kind, outputs[kind])) if kind else None, PRESENCE.get(kind, ""),
    )  # fmt: skip


def predict_image(model: Segmentor, recipe: Recipe, image: np.ndarray) -> np.ndarray:
    """Classes uint8 (H, W) of an image, by the recipe's protocol."""
    tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].to(model.mean.device)
    return predict(model, tensor, inference_of(recipe, recipe.inference)).argmax(1)[0].cpu().numpy().astype(np.uint8)


def ask(
    model: Segmentor, features: list[Tensor], pixel: tuple[int, int], box: Box, shares: Tensor | None
) -> tuple[Maps, dict[str, Tensor]]:
    """The head's maps for one pixel of the image, and its outputs."""
    top, left, height, width = box
    maps = Maps(((pixel[1] - top + 0.5) / height, (pixel[0] - left + 0.5) / width), shares)
    return maps, model.head(features, maps)


def told(kind: str, output: Tensor) -> Tensor:
    """Presence of each class as a head's output tells it: probabilities of logits; shares as they are."""
    return output.float().sigmoid() if PRESENCE[kind] == "sigmoid" else output.float()


def array(value: Tensor) -> np.ndarray:
    """A map of one image on the CPU, without the batch axis."""
    value = value[0] if value.ndim > 1 else value
    return (value.float() if value.is_floating_point() else value).cpu().numpy()


def related(x: int, y: int, maps: Maps, labels: np.ndarray) -> PixelRelations:
    """The relations of a pixel, and what lies on its own class."""
    found = {name: value for name, value in maps.items() if KINDS[name] == PIXEL}
    height, width = next(iter(found.values())).shape[1:]
    row, column = maps.cell((height, width))
    true, own, even = None, {}, {}
    if maps.shares is not None:
        shares = maps.shares_at((height, width))[0]  # (K, h, w)
        agree = (shares[:, row, column, None, None] * shares).sum(0)
        if agree.sum() > 0:
            true = (agree / agree.sum()).cpu().numpy()
            labelled = shares[:, row, column].sum() * shares.sum(0)
            mine = shares[:, row, column] / shares[:, row, column].sum()
            weights = {name: value[0] for name, value in found.items()} | {"true": agree}
            own = {name: float((value * agree).sum() / (value * labelled).sum()) for name, value in weights.items()}
            for name, gathered in maps.gathered.items():
                even[name] = float(mine @ of_labelled(gathered.even)[0, :, row, column])
    return PixelRelations(x, y, int(labels[y, x]), {n: array(v) for n, v in found.items()}, true, own, even)


def class_shares(mask: np.ndarray | Tensor, classes: int, size: Sequence[int]) -> Tensor:
    """The share of each class in each cell's pixels; what has no label belongs to none.

    Args:
        mask: uint8 (H, W), or (B, H, W).
        classes: K.
        size: (h, w) in cells.

    Returns:
        float32 (B, K, h, w), of sum 1 over the classes where all pixels have a label.
    """
    labels = torch.as_tensor(mask)
    labels = labels[None] if labels.ndim == 2 else labels
    height, width = size
    cells = [F.adaptive_avg_pool2d((labels == label).float(), (height, width)) for label in range(classes)]
    return torch.stack(cells, 1)


def of_labelled(gathered: Tensor) -> Tensor:
    """What is gathered of classes' shares, as shares of the labelled part: (B, K, h, w); NaN where there is none."""
    return gathered / gathered.sum(1, keepdim=True)


def facts(seen: Explained, checkpoint: Checkpoint) -> dict[str, Any]:
    """What a person would ask of an explained image, for JSON."""
    classes, mask = checkpoint.classes, seen.subject.mask
    known = None if mask is None else mask != IGNORE
    found: dict[str, Any] = {
        "row": seen.subject.name, "trained_on": seen.subject.seen, "head": dict(checkpoint.recipe.head),
        "shown_to_the_head": dict(zip(("top", "left", "height", "width"), seen.box, strict=True)),
        "maps": {name: list(value.shape) for name, value in seen.maps.items()},
        "pixels": [
            {"x": p.x, "y": p.y, "class": classes[p.label] if p.label != IGNORE else None, "own_class": p.own,
             "own_class_at_random": p.even}
            for p in seen.pixels
        ],
    }  # fmt: skip
    if mask is not None and known is not None and known.any():
        found["errors"] = float((seen.prediction != mask)[known].mean())
    if seen.presence is not None:
        values = zip(classes, seen.presence.tolist(), strict=True)
        found["presence"] = {"kind": seen.presence_kind, "classes": dict(values)}
    return found
