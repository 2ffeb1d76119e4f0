"""What to say of weights that are not the trunk's: how many fit, and what comes nearest."""

from __future__ import annotations

import torch

from pipelines.base.text import nearest
from pipelines.recipes.model import few_classes, meta_model
from pipelines.recipes.recipe import Recipe
from segmodels.backbone import BACKBONES, build_backbone, kind_of
from segmodels.weight_files import Entries, Shapes, read_entries, shapes
from segmodels.weights import Match, counts, match_entries


def misfit(recipe: Recipe, path: str, why: str) -> str:
    """What to say of weights that are not the trunk's: how many entries fit, and what comes nearest."""
    name = recipe.backbone.name
    head = f"backbone.weights = {recipe.backbone.weights!r}"
    try:
        entries = read_entries(path)
    except ValueError:
        return f"{head}: {why}"
    own = shapes(meta_model(recipe, few_classes(recipe)).backbone.trunk.state_dict())
    match = match_entries(own, entries.shapes, entries.ordered, kind_of(name).classifier)
    fit, number = match.fit(own, entries.shapes), sum(not counts(key) for key in own)
    text = f"{head} holds other weights than {name} takes: {fit} of the {number} entries of {name} fit."
    return f"{text} {hint(own, entries, match, name)}"


def hint(own: Shapes, entries: Entries, match: Match, name: str) -> str:
    """What comes nearest to a trunk's weights: another trunk's, or a similar name."""
    found = entries.shapes
    others = {other: shapes_of(other) for other in BACKBONES if other != name}
    matches = {
        other: match_entries(theirs, found, entries.ordered, BACKBONES[other].classifier)
        for other, theirs in others.items()
    }
    if whole := [other for other, theirs in matches.items() if theirs.whole(others[other], found)]:
        return f"All of {' and of '.join(whole)} is in it: set backbone.name={whole[0]} if you mean that."
    best = max(matches, key=lambda other: matches[other].fit(others[other], found))
    if (many := matches[best].fit(others[best], found)) > match.fit(own, found):
        number = sum(not counts(key) for key in others[best])
        return f"{best} fits best, with {many} of {number}: set backbone.name={best} if you mean that."
    for key, theirs in match.names.items():
        if found[theirs] != own[key]:
            given, wanted = found[theirs], own[key]
            return f"{theirs!r} has the shape {list(given)}, {name} wants {list(wanted)}.{bands(given, wanted)}"
    if missing := [key for key in own if key not in match.names and not counts(key)]:
        return f"It lacks {missing[0]!r}{nearest(missing[0], found)} Its first are {list(found)[:3]}."
    return f"But the file has {len(match.odd)} more, such as {list(match.odd[:3])}: name the backbone that they are of."


def bands(theirs: tuple[int, ...], own: tuple[int, ...]) -> str:
    """That a first convolution reads other images, where that is all that differs."""
    if len(theirs) != 4 or own[1:2] != (3,) or theirs[:1] + theirs[2:] != own[:1] + own[2:]:
        return ""
    return f" It reads images of {theirs[1]} channels, and models here read RGB: give weights of RGB images."


def shapes_of(name: str) -> Shapes:
    """The shapes of a trunk's weights."""
    with torch.device("meta"):
        return shapes(build_backbone(name, min(BACKBONES[name].output_strides)).trunk.state_dict())
