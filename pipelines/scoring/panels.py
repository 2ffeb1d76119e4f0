"""A grid of panels, 900 pixels wide, as MLflow shows a picture: images, coloured masks, maps over images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from datasets.sample import IGNORE
from pipelines.base import pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, DPI = 9.0, 100  # inches and pixels per inch
HEAT, SIGNED = "viridis", "PuOr"  # both tell apart for every kind of colour blindness
ORANGE, BLUE, GREEN, PINK = "#E69F00", "#0072B2", "#009E73", "#CC79A7"  # Okabe and Ito
LEAST_NAMED = 0.01  # of an image: smaller regions get no name


@dataclass(frozen=True)
class Panel:
    """One picture of a grid.

    Attributes:
        title: above it, one or two short lines.
        image: RGB uint8 (H, W, 3), or a map float (h, w), spread over an image of `extent`.
        extent: (height, width) in pixels of the image below a map.
        low, high: of a map's colours; its own extremes if None.
        signed: a map whose colours are symmetric around 0.
        root: colours by the square root of a map's values from 0 on, so that small ones are seen too.
        names: (x, y, text) to write into it.
        point: (x, y) of a pixel to mark, or None.
        outline: bool (H, W) whose border is drawn, or None.
        boxes: (left, top, width, height) to draw, with their numbers.
    """

    title: str
    image: np.ndarray
    extent: tuple[int, int] | None = None
    low: float | None = None
    high: float | None = None
    signed: bool = False
    root: bool = False
    names: Sequence[tuple[float, float, str]] = ()
    point: tuple[int, int] | None = None
    outline: np.ndarray | None = None
    boxes: Sequence[tuple[int, int, int, int]] = ()


def grid(title: str, panels: Sequence[Panel | None], columns: int, *, bar: str = "") -> Figure:
    """Panels in rows, None for an empty place.

    Args:
        title: of the whole picture.
        panels: all of about the same proportions.
        columns: panels side by side.
        bar: what the one scale of all maps means; "" for no scale, where each map has its own.
    """
    from matplotlib.figure import Figure

    rows = -(-len(panels) // columns)
    tallest = max(shape(panel)[0] / shape(panel)[1] for panel in panels if panel is not None)
    lines = max(panel.title.count("\n") + 1 for panel in panels if panel is not None)
    across = (WIDTH - 0.08 * columns) / columns
    height = rows * (across * min(tallest, 2) + 0.18 * lines + 0.1) + 0.25 + 0.17 * title.count("\n")
    figure = Figure(figsize=(WIDTH, max(1.5, height + (0.55 if bar else 0.1))), layout="constrained", dpi=DPI)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.01, hspace=0.01)  # type: ignore[union-attr, call-arg]
    axes = figure.subplots(rows, columns, squeeze=False)
    shown = None
    for place, panel in zip(axes.flat, [*panels, *[None] * (rows * columns - len(panels))], strict=True):
        place.axis("off")
        if panel is not None:
            drawn = draw(place, panel)
            shown = drawn if panel.image.ndim == 2 else shown
    figure.suptitle(pictures.drawable(title), fontsize=10, parse_math=False, x=0.01, ha="left")
    if bar and shown is not None:
        scale = figure.colorbar(shown, ax=axes, orientation="horizontal", aspect=60, shrink=0.6, pad=0.02)
        scale.set_label(bar, fontsize=8)
        scale.ax.tick_params(labelsize=8)
    return figure


def shape(panel: Panel) -> tuple[int, int]:
    """Height and width of a panel's picture in pixels of the image."""
    return panel.extent or (panel.image.shape[0], panel.image.shape[1])


def draw(axes: Any, panel: Panel) -> Any:
    """Draw one panel; returns what a colour scale can be made of."""
    height, width = shape(panel)
    place: dict[str, Any] = {"extent": (-0.5, width - 0.5, height - 0.5, -0.5)}
    if panel.image.ndim == 2:
        place |= {"cmap": SIGNED if panel.signed else HEAT, "norm": scale(panel), "interpolation": "nearest"}
    shown = axes.imshow(panel.image, **place)
    if panel.outline is not None and panel.outline.any() and not panel.outline.all():
        axes.contour(panel.outline.astype(float), [0.5], colors="white", linewidths=2.2)
        axes.contour(panel.outline.astype(float), [0.5], colors="black", linewidths=0.9)
    if panel.point is not None:
        for mark, size, colour, line in (("+", 16, "white", 4.0), ("+", 14, "#D00000", 2.0)):
            axes.plot(*panel.point, mark, color=colour, markersize=size, markeredgewidth=line)
    for x, y, text in panel.names:
        axes.text(x, y, text, fontsize=8, ha="center", va="center", color="black", parse_math=False, clip_on=True,
                  bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1})  # fmt: skip
    mark_boxes(axes, panel)
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    axes.set_title(pictures.drawable(panel.title), fontsize=9, parse_math=False, pad=3)
    return shown


def scale(panel: Panel) -> Any:
    """How a map's values become colours."""
    from matplotlib.colors import Normalize, PowerNorm

    low, high = limits(panel)
    return PowerNorm(0.5, low, high) if panel.root else Normalize(low, high)


def limits(panel: Panel) -> tuple[float, float]:
    """The values at the ends of a map's colours."""
    values = panel.image[np.isfinite(panel.image)]
    if panel.signed:
        most = panel.high if panel.high is not None else float(np.abs(values).max(initial=0)) or 1.0
        return -most, most
    low = panel.low if panel.low is not None else float(values.min(initial=0))
    high = panel.high if panel.high is not None else float(values.max(initial=low))
    return low, high if high > low else low + 1e-12


def mark_boxes(axes: Any, panel: Panel) -> None:
    """Draw numbered boxes."""
    from matplotlib.patches import Rectangle

    for number, (left, top, width, height) in enumerate(panel.boxes, start=1):
        for colour, line in (("white", 3.0), ("black", 1.2)):
            box = Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor=colour, linewidth=line)
            axes.add_patch(box)
        axes.text(left, top, str(number), fontsize=8, color="white", ha="left", va="bottom", fontweight="bold",
                  bbox={"facecolor": "black", "edgecolor": "none", "pad": 1})  # fmt: skip


def mask_panel(
    title: str, image: np.ndarray, mask: np.ndarray, classes: Sequence[str], palette: pictures.Palette, **more: Any
) -> Panel:
    """A coloured mask over its image, the names of the larger regions in it: colours alone are too alike."""
    return Panel(title, pictures.blend(image, mask, palette, 0.55), names=region_names(mask, classes), **more)


def region_names(mask: np.ndarray, classes: Sequence[str]) -> list[tuple[float, float, str]]:
    """(x, y, name) in the middle of the largest region of each class."""
    names, found = pictures.labels(classes, 14), []
    for label in np.unique(mask[mask != IGNORE]):
        count, regions, facts, _ = cv2.connectedComponentsWithStats((mask == label).astype(np.uint8))
        largest = 1 + int(facts[1:count, cv2.CC_STAT_AREA].argmax())
        if facts[largest, cv2.CC_STAT_AREA] >= LEAST_NAMED * mask.size:
            inside = cv2.distanceTransform(np.pad(regions == largest, 1).astype(np.uint8), cv2.DIST_L2, 3)
            row, column = np.unravel_index(int(inside[1:-1, 1:-1].argmax()), mask.shape)
            found.append((float(column), float(row), names[int(label)] if label < len(names) else str(label)))
    return found


def faded(image: np.ndarray, share: float = 0.65) -> np.ndarray:
    """The image in grey, whitened, for colours to lie on: RGB uint8 (H, W, 3)."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(grey, 1 - share, np.full_like(grey, 255), share, 0)


def painted(image: np.ndarray, layers: Sequence[tuple[np.ndarray, str]]) -> np.ndarray:
    """The faded image with pixels in flat colours: of bool (H, W) and a colour #RRGGBB each."""
    picture = faded(image)
    for where, colour in layers:
        picture[where] = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return picture
