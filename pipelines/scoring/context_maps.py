"""What the context in a trunk's blocks does to one image's features: the map before and after each of its units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.base.errors import InputError
from pipelines.recipes.recipe import Recipe
from pipelines.recipes.views import val_view
from pipelines.scoring.head_figures import principal_colours
from pipelines.scoring.one_image import on_device
from pipelines.scoring.panels import Panel, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Unit:
    """One unit of context, and what it was given and gave.

    Args:
        name: of the module within the trunk.
        before, after: float32 (C, h, w), of the whole canvas.
    """

    name: str
    before: np.ndarray
    after: np.ndarray

    @property
    def change(self) -> float:
        """How much of the map it changes: ‖after - before‖ / ‖before‖."""
        moved = float(np.linalg.norm(self.after - self.before))
        return moved / max(float(np.linalg.norm(self.before)), 1e-12)


def check_context(recipe: Recipe, path: Path, asked: Sequence[str]) -> None:
    """Make sure that a model of another task than segmentation has something to explain.

    Args:
        recipe: of the checkpoint.
        path: of it.
        asked: options of the command line that are of segmentation's heads.

    Raises:
        InputError: its trunk has no context, or there are such options.
    """
    what = f"{path} is of task: {recipe.task}"
    if recipe.backbone.context is None:
        raise InputError(
            f"{what}, whose heads give no context maps; what can be drawn is the context in the trunk's blocks, and "
            "this recipe has backbone.context: null"
        )
    if asked:
        raise InputError(
            f"{what}, of which the maps before and after each unit of backbone.context are drawn; leave out "
            f"{', '.join(asked)}"
        )


@torch.no_grad()
def context_maps(model: nn.Module, recipe: Recipe, image: np.ndarray) -> tuple[np.ndarray, list[Unit]]:
    """Ask every unit of context for its map of an image, in float32.

    Args:
        model: whose trunk has context; in evaluation mode.
        recipe: of it.
        image: uint8 (H, W, 3).

    Returns:
        What the model sees, uint8 (h, w, 3), padding included, and the units in the order in which they compute.
    """
    pixels, _ = val_view(recipe).alone(image)
    backbone: Any = model.backbone
    units: list[Unit] = []

    def noting(name: str) -> Any:
        def note(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            units.append(Unit(name, *(tensor[0].float().cpu().clone().numpy() for tensor in (given[0], output))))

        return note

    names = [start.rstrip(".") for start in backbone.context]
    hooks = [backbone.trunk.get_submodule(name).register_forward_hook(noting(name)) for name in names]
    try:
        model(on_device(model, pixels))
    finally:
        for hook in hooks:
            hook.remove()
    return pixels, units


def context_figures(seen: np.ndarray, units: Sequence[Unit], about: str) -> dict[str, Figure]:
    """The pictures of an image's units, by name of the file without its suffix.

    Args:
        seen: what the model sees, uint8 (h, w, 3).
        units: at least one.
        about: model and image, for titles.
    """
    return {"context_mean": means(seen, units, about), "context_pca": colours(seen, units[-1], about)}


def means(seen: np.ndarray, units: Sequence[Unit], about: str) -> Figure:
    """Means over the channels before and after each unit, as in Fig. 11 of SRNet: a row for each unit."""
    panels: list[Panel | None] = []
    for unit in units:
        both = [unit.before.mean(0), unit.after.mean(0)]
        low, high = float(min(map(np.min, both))), float(max(map(np.max, both)))
        titles = [f"{unit.name}\nbefore", f"{unit.name}\nafter, changed by {unit.change:.0%}"]
        panels += [Panel("image\nas the model sees it", seen)]
        panels += [Panel(t, m, seen.shape[:2], low=low, high=high) for t, m in zip(titles, both, strict=True)]  # type: ignore[arg-type]
    return grid(f"{about}\nmean of the channels; one scale for before and after", panels, 3)


def colours(seen: np.ndarray, unit: Unit, about: str) -> Figure:
    """The last unit's input and output as colours: their three principal components together, as in Fig. 8 of SRNet."""
    before, after, share = principal_colours(unit.before, unit.after)
    extent = (seen.shape[0], seen.shape[1])
    panels = [Panel("image", seen), Panel("before", before, extent), Panel("after", after, extent)]
    line = f"{unit.name}: principal components 1 to 3 of input and output together ({share:.0%} of the variance) as RGB"
    return grid(f"{about}\n{line}", panels, 3)


def context_facts(units: Sequence[Unit]) -> list[dict[str, Any]]:
    """What a person would ask of the units, for JSON."""
    return [
        {"unit": unit.name, "shape": list(unit.before.shape), "mean_before": float(unit.before.mean()),
         "mean_after": float(unit.after.mean()), "change": unit.change}
        for unit in units
    ]  # fmt: skip
