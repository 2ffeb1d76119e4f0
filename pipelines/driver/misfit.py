"""What to say of weights that are not the trunk's: how many fit, and what comes nearest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.models import load_state_dict

from pipelines.base.text import first_sentence, nearest
from pipelines.recipes.model import meta_model
from pipelines.recipes.recipe import Recipe
from segmodels.backbone import BACKBONES, build_backbone, kind_of

COUNTER = "num_batches_tracked"  # of batch norms: files may lack it
Shapes = Mapping[str, tuple[int, ...]]


def unreadable(path: str, error: Exception) -> str:
    """What to say of a file that PyTorch does not read."""
    why = "it holds other things than tensors" if "weights_only" in str(error) else first_sentence(error)
    return (
        f"backbone.weights = {path!r} ({Path(path).stat().st_size:,} bytes) is no state dict that PyTorch reads: "
        f"{why}. Download it again, or save the state dict of the trunk alone with torch.save."
    )


def misfit(recipe: Recipe, path: str, why: str) -> str:
    """What to say of weights that are not the trunk's: how many entries fit, and what comes nearest."""
    name = recipe.backbone.name
    head = f"backbone.weights = {path!r}"
    try:
        state = load_state_dict(path, use_ema=False, device="cpu", weights_only=True)
        found = shapes({key: value for key, value in state.items() if not key.startswith(kind_of(name).classifier)})
    except Exception:
        return f"{head}: {why}"
    own = shapes(meta_model(recipe, 2).backbone.trunk.state_dict())
    fit = fitting(own, found)
    text = f"{head} holds other weights than {name} takes: {fit} of the {len(own)} entries of {name} fit."
    if fit == len(own):
        extra = sorted(set(found) - set(own))
        return f"{text} But the file has {len(extra)} more, such as {extra[:3]}: name the backbone that they are of."
    return f"{text} {hint(own, found, fit, name)}"


def hint(own: Shapes, found: Shapes, fit: int, name: str) -> str:
    """What comes nearest to a trunk's weights: the same without a prefix, another trunk's, or a similar name."""
    prefix = prefix_of(own, found)
    without = {key.removeprefix(prefix): shape for key, shape in found.items() if key.startswith(prefix)}
    if prefix and (many := fitting(own, without)) > fit:
        return f"Without the prefix {prefix!r} of its keys {many} fit: save the trunk alone, without it."
    others = {other: shapes_of(other) for other in BACKBONES if other != name}
    best = max(others, key=lambda other: fitting(others[other], found))
    if (many := fitting(others[best], found)) > fit:
        return f"{best} fits best, with {many} of {len(others[best])}: set backbone.name={best} if you mean that."
    missing = next((key for key in own if found.get(key) != own[key]), "")
    if missing in found:
        return f"{missing!r} has the shape {list(found[missing])}, {name} wants {list(own[missing])}."
    return f"It lacks {missing!r}{nearest(missing, found)} Its first are {list(found)[:3]}."


def prefix_of(own: Shapes, found: Shapes) -> str:
    """What most often comes before one of the trunk's keys; empty where nothing does."""
    prefixes: Counter[str] = Counter()
    for key in found:
        parts = key.split(".")
        ends = (".".join(parts[first:]) for first in range(len(parts)))
        if end := next((end for end in ends if end in own), ""):
            prefixes[key.removesuffix(end)] += 1
    return prefixes.most_common(1)[0][0] if prefixes else ""


def shapes(state: Mapping[str, Any]) -> Shapes:
    """The shapes of a state dict's tensors, without the counters of batch norms."""
    return {key: tuple(value.shape) for key, value in state.items() if hasattr(value, "shape") and COUNTER not in key}


def fitting(own: Shapes, found: Shapes) -> int:
    """How many entries are there with their shape."""
    return sum(found.get(key) == shape for key, shape in own.items())


def shapes_of(name: str) -> Shapes:
    """The shapes of a trunk's weights."""
    with torch.device("meta"):
        return shapes(build_backbone(name, min(BACKBONES[name].output_strides)).trunk.state_dict())
