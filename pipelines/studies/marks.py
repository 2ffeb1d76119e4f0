"""Parts of plots: a dot with its interval, axes of numbers or names, labels that do not cover each other."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.base.files import replacing
from pipelines.base.pictures import drawable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipelines.scoring.intervals import Interval

MEASURED, PAPER, GRID, DARK = "#1f5fa8", "#c8661d", "#e5e7eb", "#444444"
DIAMOND = {"linestyle": "none", "marker": "D", "markersize": 6, "markerfacecolor": "white", "markeredgecolor": PAPER}
DPI = 120
WIDE = 20  # a ratio of the greatest value to the least that asks for a logarithmic axis
PLACES = ((7, 5, "left", "bottom"), (7, -5, "left", "top"), (-7, 5, "right", "bottom"), (-7, -5, "right", "top"))


def literal(text: str) -> str:
    """A study's own words as matplotlib shows them letter by letter: two dollar signs would make mathematics of it."""
    return drawable(text).replace("$", r"\$")


def save(path: Path, figure: Figure) -> str:
    """Write a figure as PNG; returns the path."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=DPI)
    return str(path)


def dot(axes: Any, x: float, y: float, interval: Interval, *, across: bool = False, faint: bool = False) -> None:
    """A measured mean with its interval in percent, if it has one, upwards or across."""
    half = None if interval.half is None else [interval.half * 100]
    error = {"xerr" if across else "yerr": half}
    colour = "#9aa5b1" if faint else MEASURED
    axes.errorbar([x], [y], **error, fmt="o", color=colour, capsize=4, markersize=6, linewidth=1.5, zorder=3)


def finish(axes: Any, title: str, under: str, *, grid: bool = True, width: int = 95) -> None:
    """Title, the text below it in lines of `width` letters, and a grid behind everything."""
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if grid:
        axes.grid(color=GRID)
    axes.set_title("\n".join(map(literal, [title, *textwrap.wrap(under, width)])), fontsize=9, loc="left")


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def axis(values: Sequence[Any]) -> tuple[list[float], str]:
    """Places along an axis and its scale: numbers by their size, anything else in the order given."""
    if not all(is_number(value) for value in values):
        return [float(i) for i in range(len(values))], "linear"
    low, high = min(values), max(values)
    return [float(value) for value in values], "log" if low > 0 and high >= 8 * low else "linear"


def column(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Heights 0..1 of values on one axis of parallel coordinates, and its ticks (height, name)."""
    if not all(is_number(value) for value in values):
        names = sorted(set(map(str, values)))
        step = 1 / max(1, len(names) - 1)
        heights = {name: i * step if len(names) > 1 else 0.5 for i, name in enumerate(names)}
        return [heights[str(value)] for value in values], [(height, name) for name, height in heights.items()]
    numbers = [float(value) for value in values]
    log = min(numbers) > 0 and max(numbers) >= WIDE * min(numbers)
    scaled = [math.log(number) if log else number for number in numbers]
    low, span = min(scaled), (max(scaled) - min(scaled)) or 1.0
    middle = (low + max(scaled)) / 2
    ticks = [low, middle, low + span]
    names = [f"{math.exp(tick) if log else tick:.3g}" for tick in ticks]
    return [(value - low) / span for value in scaled], [
        ((t - low) / span, name) for t, name in zip(ticks, names, strict=True)
    ]


def same_height(panels: Sequence[Any]) -> None:
    """Give panels of different values the same span in y, so that slopes compare."""
    span = max(high - low for low, high in (panel.get_ylim() for panel in panels))
    for panel in panels:
        middle = sum(panel.get_ylim()) / 2
        panel.set_ylim(middle - span / 2, middle + span / 2)


def label(figure: Figure, axes: Any, points: Sequence[tuple[float, float, str]]) -> None:
    """Name points where there is room; a name that finds none is next to its point anyway."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    centres = [axes.transData.transform((x, y)) for x, y, _ in points]
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in centres]
    frame = axes.get_window_extent()
    for x, y, name in sorted(points, key=lambda point: -point[1]):
        best = None
        for dx, dy, across, up in PLACES:
            text = axes.annotate(
                literal(name), (x, y), (dx, dy), textcoords="offset points", ha=across, va=up, fontsize=8, color=DARK
            )
            box = text.get_window_extent()
            clash = sum(box.overlaps(other) for other in taken) + (box.x0 < frame.x0 or box.x1 > frame.x1)
            if best is None or clash < best[0]:
                if best is not None:
                    best[1].remove()
                best = (clash, text, box)
            else:
                text.remove()
        if best is not None:
            taken.append(best[2])
