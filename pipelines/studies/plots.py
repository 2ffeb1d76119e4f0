"""Plots of a study's table: gains, a curve over one key, parallel coordinates, Pareto fronts. They need no screen.

Measured values are blue dots with the table's intervals; published ones are hollow orange diamonds, and say so.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.base.pictures import new_figure
from pipelines.scoring.intervals import Interval, pareto
from pipelines.studies.marks import (
    DARK,
    DIAMOND,
    MEASURED,
    PAPER,
    axis,
    column,
    dot,
    finish,
    label,
    literal,
    same_height,
    save,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipelines.studies.table import Line, StudyTable

# cost -> (its axis, divisor, whether less is better)
COSTS = {
    "gmacs": ("GMACs", 1.0, True),
    "parameters": ("parameters, M", 1e6, True),
    "activation_mib": ("activations, MiB", 1.0, True),
    "memory_mib": ("GPU peak, MiB", 1.0, True),
    "images_per_s": ("images/s, more is better", 1.0, False),
}
LONG = 7  # letters of a tick, above which ticks lean


def draw(table: StudyTable, folder: Path) -> dict[str, str]:
    """Write the plots that the table has data for: name -> path."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"gains": gains(table), "curve": curve(table), "parallel": parallel(table)}
    figures |= {f"pareto-{key}": front(table, key) for key in COSTS}
    return {name: save(folder / f"{name}.png", figure) for name, figure in figures.items() if figure is not None}


def results(table: StudyTable) -> list[tuple[Line, Interval]]:
    """The lines with a measured mean."""
    return [(line, line.summary.mean) for line in table.lines if line.summary and line.summary.mean]


def under(table: StudyTable) -> str:
    """The small print of a plot: the meaning of the bars, and how the metric was measured."""
    return f"measured: {conditions(table)}; bars: {table.confidence:.0%} t-intervals over the seeds"


def conditions(table: StudyTable) -> str:
    """How the scores were measured, with the variants that differ in it."""
    return table.protocol + "".join(f"; but {name}: {protocol}" for name, protocol in table.others.items())


def gains(table: StudyTable) -> Figure | None:
    """Each variant's gain over the baseline with its interval, and the published gain."""
    lines = [(line, line.summary.gain) for line in table.lines if line.summary and line.summary.gain]
    if not lines:
        return None
    figure, axes = new_figure(8, 1.9 + 0.4 * len(lines))
    axes.axvline(0, color=DARK, linewidth=1)
    for place, (_, gain) in enumerate(lines):
        dot(axes, gain.mean * 100, place, gain, across=True)
    printed = [(line.published_gain, i) for i, (line, _) in enumerate(lines) if line.published_gain is not None]
    if printed:
        axes.plot(*zip(*printed, strict=True), **DIAMOND, label=literal(f"published: {table.published_as}"), zorder=4)
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.55 / (0.4 * len(lines))), frameon=False)
    axes.set_yticks(range(len(lines)), [literal(line.variant) for line, _ in lines])
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_xlabel(f"gain over {literal(str(table.baseline))}, percentage points of {table.metric}, paired by seed")
    finish(axes, table.title, under(table))
    return figure


def curve(table: StudyTable) -> Figure | None:
    """The metric over the values of the study's key; published values in a panel of their own, with the same span."""
    key = table.curve
    found = [(line, mean) for line, mean in results(table) if key in line.settings]
    if key is None or len(found) < 2:
        return None
    places, scale = axis([line.settings[key] for line, _ in found])
    points = sorted(zip(places, found, strict=True), key=lambda point: point[0])
    ticks = [literal(str(line.settings[key])) for _, (line, _) in points]
    printed = [(x, line.published) for x, (line, _) in points if line.published is not None]
    figure, panels = new_panels(2 if printed else 1)
    panels[0].plot([x for x, _ in points], [mean.mean * 100 for _, (_, mean) in points], color=MEASURED, alpha=0.4)
    for x, (_, mean) in points:
        dot(panels[0], x, mean.mean * 100, mean)
    if printed:
        panels[1].plot(*zip(*printed, strict=True), color=PAPER, alpha=0.4)
        panels[1].plot(*zip(*printed, strict=True), **DIAMOND)
        same_height(panels)
        finish(panels[1], "Published, not measured here", table.published_as, width=60)
    for panel in panels:
        panel.set_xscale(scale, **({"base": 2} if scale == "log" else {}))
        leaning = {"rotation": 25, "ha": "right"} if max(map(len, ticks)) > LONG else {}
        panel.set_xticks([x for x, _ in points], ticks, **leaning)
        panel.minorticks_off()
        panel.set_xlabel(literal(key))
    panels[0].set_ylabel(f"{table.metric}, percent")
    finish(panels[0], table.title, under(table), width=60)
    return figure


def parallel(table: StudyTable) -> Figure | None:
    """A line per variant through the keys that all set and that vary, to its score, which also gives its colour."""
    found = results(table)
    keys = dict.fromkeys(key for line, _ in found for key in line.settings)
    shared = [key for key in keys if all(key in line.settings for line, _ in found)]
    varied = [key for key in shared if len({str(line.settings[key]) for line, _ in found}) > 1]
    if len(varied) < 2:
        return None
    from matplotlib import colormaps
    from matplotlib.patheffects import withStroke

    scores = [mean.mean * 100 for _, mean in found]
    columns = [*(column([line.settings[key] for line, _ in found]) for key in varied), column(scores)]
    figure, axes = new_figure(2.5 + 1.9 * len(varied), 5)
    for row in sorted(range(len(found)), key=scores.__getitem__):  # the best on top
        heights = [places[row] for places, _ in columns]
        axes.plot(range(len(columns)), heights, color=colormaps["viridis"](0.95 * heights[-1]), linewidth=1.8)
    for x, (_, ticks) in enumerate(columns):
        axes.axvline(x, color=DARK, linewidth=0.8, zorder=3)
        for height, name in ticks:
            text = axes.text(x + 0.02, height, literal(name), fontsize=8, va="center", zorder=4)
            text.set_path_effects([withStroke(linewidth=3, foreground="white")])
    axes.set_xticks(range(len(columns)), [*map(literal, varied), f"{table.metric}, percent"])
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(columns) - 0.75)
    axes.spines[["left", "bottom"]].set_visible(False)
    finish(axes, table.title, f"measured: {conditions(table)}; means over the seeds", grid=False)
    return figure


def front(table: StudyTable, key: str) -> Figure | None:
    """The measured metric over a cost; variants that another one beats in both are grey."""
    name, divisor, less = COSTS[key]
    costs = [(line.variant, mean, line.summary.costs[key]) for line, mean in results(table) if line.summary]
    found = [(variant, mean, value / divisor) for variant, mean, value in costs if value is not None]
    if len({value for _, _, value in found}) < 2:  # one variant, or all cost the same
        return None
    best = pareto([(mean.mean, value if less else -value) for _, mean, value in found])
    figure, axes = new_figure(7.5, 5)
    edge = sorted((value, mean.mean * 100) for (_, mean, value), on in zip(found, best, strict=True) if on)
    axes.plot(*zip(*edge, strict=True), color=MEASURED, alpha=0.5, drawstyle="steps-post" if less else "steps-pre")
    for (_, mean, value), on in zip(found, best, strict=True):
        dot(axes, value, mean.mean * 100, mean, faint=not on)
    axes.set_xlabel(name)
    axes.set_ylabel(f"{table.metric}, percent")
    axes.margins(0.15, 0.1)
    finish(axes, f"{table.title}: Pareto front", under(table))
    label(figure, axes, [(value, mean.mean * 100, variant) for variant, mean, value in found])
    return figure


def new_panels(number: int) -> tuple[Figure, list[Any]]:
    """A figure of `number` panels side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 5 * number, 4.5), layout="constrained")
    return figure, list(figure.subplots(1, number, squeeze=False)[0])
