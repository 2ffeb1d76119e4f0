"""Cost and speed over image sizes, as SRNet's Fig. 5 and OCNet's Figs. 3 and 4 draw them: a line for each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from pipelines.studies.marks import GRID, literal, save

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # told apart by all eyes
MARKS = "osD^vPX"
LINES = {"eager": "-", "fused": "--", "compiled": ":", "fused+compiled": "-."}


def draw_curves(path: Path, points: Sequence[Mapping[str, Any]], place: str) -> str:
    """GMACs and memory, and ms where they were taken, over the pixels of an image; both axes logarithmic.

    Args:
        path: of the PNG.
        points: of `bench inference`: subject, size, gmacs, peak, and by form the seconds.
        place: what the times were taken on.

    Returns:
        The path.
    """
    from matplotlib.figure import Figure

    timed = any(point["forms"] for point in points)
    figure = Figure(figsize=(4.6 * (2 + timed), 4.6), layout="constrained")
    panels = figure.subplots(1, 2 + timed, squeeze=False)[0]
    subjects = list(dict.fromkeys(point["subject"] for point in points))
    for number, subject in enumerate(subjects):
        own = sorted((p for p in points if p["subject"] == subject), key=lambda p: p["size"][0] * p["size"][1])
        style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKS[number % len(MARKS)]}
        pixels = [point["size"][0] * point["size"][1] for point in own]
        panels[0].plot(pixels, [point["gmacs"] for point in own], label=literal(subject), **style)
        panels[1].plot(pixels, [point["peak"] / 2**20 for point in own], label=literal(subject), **style)
        for form in dict.fromkeys(form for point in own for form in point["forms"]):
            times = [1e3 * median(point["forms"][form]["seconds"]) for point in own]
            name = literal(subject if len(subjects) > 1 and form == "eager" else f"{subject}, {form}")
            panels[2].plot(pixels, times, label=name, linestyle=LINES[form], **style)
    texts = ["GMACs of an image", "MiB held at once", f"ms of a batch, {place}"]
    ticks = sorted({point["size"] for point in points}, key=lambda size: size[0] * size[1])
    for panel, text in zip(panels, texts, strict=False):
        dress(panel, text, ticks)
    handles, names = panels[-1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=1 + (len(names) > 4), fontsize=8, frameon=False)
    return save(path, figure)


def dress(panel: Any, text: str, sizes: Sequence[tuple[int, int]]) -> None:
    """Axes, names and grid of one panel; sizes of as many pixels share a tick."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    panel.set_xscale("log")
    panel.set_yscale("log")
    by_area: dict[int, list[str]] = {}
    for height, width in sizes:
        by_area.setdefault(height * width, []).append(f"{height}x{width}")
    panel.set_xticks(list(by_area), ["\n".join(names) for names in by_area.values()], fontsize=8, rotation=30)
    panel.xaxis.set_minor_locator(NullLocator())
    low, high = panel.get_ylim()
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.set_title(literal(text), fontsize=9, loc="left")
    panel.set_xlabel("image, pixels", fontsize=8)
    panel.grid(color=GRID, which="major")
    panel.spines[["top", "right"]].set_visible(False)
