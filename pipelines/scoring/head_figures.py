"""Figures of one explained image: truth and errors, and what each kind of context map shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from datasets.sample import IGNORE
from pipelines.base.pictures import Palette, labels
from pipelines.scoring.explaining import Explained, PixelRelations
from pipelines.scoring.panels import BLUE, ORANGE, Panel, grid, mask_panel, painted
from segmodels.heads.maps import CLASSES, KINDS, PARTS, SINGLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 11  # maps of one figure, next to the image
NAMES = {
    "relation": "relation", "global": "global stage", "local": "local stage", "dense": "both stages",
    "position": "position attention", "cross": "criss-cross attention, last round", "collect": "collects from",
    "distribute": "distributes to", "sub_attention": "fragment", "nodes": "node", "responsibilities": "basis",
    "assignment": "codeword", "class_relation": "class relation", "regions": "soft region",
    "attention": "attention", "spatial_gate": "spatial gate", "full_attention": "A, mean over channels",
    "attended": "A·x, mean over channels",
}  # fmt: skip


def figures(seen: Explained, classes: Sequence[str], palette: Palette, about: str) -> dict[str, Figure]:
    """All figures that an explained image allows, by name of the file without its suffix.

    Args:
        seen: the image.
        classes: K names.
        palette: K colours.
        about: model, image and protocol, for titles.
    """
    found = {"overview": overview(seen, classes, palette, about)}
    if seen.pixels:
        found["relations"] = relations(seen, classes, about)
    for name in seen.maps:
        if KINDS[name] in DRAWN:
            draw = DRAWN[KINDS[name]]
            found |= {name: draw(seen, name, classes, about)} if name not in ("attended", "full_attention") else {}
    if "unit_input" in seen.maps:
        found["unit_pca"] = unit_pca(seen, about)
    if seen.presence is not None:
        found["presence"] = presence(seen, classes, about)
    return found


def overview(seen: Explained, classes: Sequence[str], palette: Palette, about: str) -> Figure:
    """Image, truth, prediction and errors; without labels image and prediction. A box shows what the head was shown."""
    subject, guess = seen.subject, seen.prediction
    top, left, height, width = seen.box
    whole = (height, width) == guess.shape
    image = Panel("image" if whole else "image, box: shown to the head", subject.image,
                  boxes=[] if whole else [(left, top, width, height)])  # fmt: skip
    if subject.mask is None:
        panels = [image, mask_panel("prediction", subject.image, guess, classes, palette)]
        return grid(about, panels, 2)
    wrong = (subject.mask != IGNORE) & (guess != subject.mask)
    share = wrong.sum() / max(1, (subject.mask != IGNORE).sum())
    layers = [(wrong, ORANGE), (subject.mask == IGNORE, "#FFFFFF")]
    known = np.where(subject.mask == IGNORE, IGNORE, guess).astype(np.uint8)
    return grid(about, [
        image,
        mask_panel("truth (white: no label)", subject.image, subject.mask, classes, palette),
        mask_panel("prediction", subject.image, known, classes, palette),
        Panel(f"errors (orange): {share:.1%} of the labelled pixels", painted(subject.image, layers)),
    ], 2)  # fmt: skip


def relations(seen: Explained, classes: Sequence[str], about: str) -> Figure:
    """A row for each pixel: the image, the relations, the true relation."""
    names = labels(classes, 18)
    columns = 1 + len(seen.pixels[0].maps) + (seen.mask is not None)
    panels = [panel for pixel in seen.pixels for panel in relation_row(seen, pixel, names)]
    what = "weight of every cell in what the marked pixel gathers; each map has its own scale, dark to bright"
    own = (
        "\n%: of the weight on the pixel's own class (with equal weights); outline: that class"
        if seen.mask is not None
        else ""
    )
    return grid(f"{about}\n{what}{own}", panels, columns)


def relation_row(seen: Explained, pixel: PixelRelations, names: Sequence[str]) -> list[Panel | None]:
    """The panels of one pixel."""
    top, left, height, width = seen.box
    extent, point = (height, width), (pixel.x - left, pixel.y - top)
    outline = seen.mask == pixel.label if seen.mask is not None and pixel.label != IGNORE else None
    name = names[pixel.label] if pixel.label != IGNORE else "no label"
    what = name if seen.mask is not None else f"{name}, predicted"
    row: list[Panel | None] = [Panel(f"pixel {pixel.x}, {pixel.y}\n{what}", seen.image, point=point, outline=outline)]
    for key, value in pixel.maps.items():
        told = f"{pixel.own[key]:.0%}" if key in pixel.own else ""
        told += f" ({pixel.even[key]:.0%})" if key in pixel.even else ""
        row.append(Panel(f"{NAMES[key]}\n{told}", value, extent, low=0, point=point, outline=outline))
    if pixel.true is not None:
        title = f"true relation\n{pixel.own['true']:.0%}"
        row.append(Panel(title, pixel.true, extent, low=0, point=point, outline=outline))
    elif seen.mask is not None:
        row.append(None)
    return row


def parts(seen: Explained, name: str, classes: Sequence[str], about: str) -> Figure:
    """The parts of a context, those that contribute most first; RecoNet's with A and A·x before them."""
    maps, extent = seen.maps[name], seen.box[2:]
    power = np.abs(maps).mean((1, 2))
    order = np.argsort(-power, kind="stable")[: MOST - (2 if name == "sub_attention" else 0)]
    signed, most = bool((maps < 0).any()), float(np.abs(maps[order]).max())
    first = [Panel("image", seen.image)]
    if name == "sub_attention":
        first += [Panel(NAMES[key], seen.maps[key], extent) for key in ("full_attention", "attended")]
    shown = [
        Panel(part_title(seen, name, int(i), power), maps[i], extent, low=0 if not signed else None, high=most,
              signed=signed)
        for i in order
    ]  # fmt: skip
    left = f", the {len(order)} of {len(maps)} with the most weight" if len(order) < len(maps) else ""
    return grid(f"{about}\n{PART_LINES[name]}{left}", [*first, *shown], 4, bar=f"{NAMES[name]}: one scale for all")


PART_LINES = {
    "sub_attention": "what each fragment λ_i A_i·x adds to A·x, mean over channels; %: its share of A·x",
    "nodes": "of each node group the channel with the greatest mean size, after its gate",
    "responsibilities": "responsibilities of the bases, of sum 1 at each cell",
    "assignment": "assignment to the codewords, of sum 1 at each cell",
}


def part_title(seen: Explained, name: str, part: int, power: np.ndarray) -> str:
    """The title of one part's map."""
    if name == "sub_attention":
        return f"A_{part + 1}·x: {power[part] / power.sum():.0%}   λ {seen.maps['lambda_'][part]:.3f}"
    if name == "nodes":
        return f"node {part + 1}, channel {seen.maps['node_channels'][part] + 1}"
    return f"{NAMES[name]} {part + 1}"


def per_class(seen: Explained, name: str, classes: Sequence[str], about: str) -> Figure:
    """The maps of the classes that the image holds or is said to hold, then those with the greatest values."""
    maps, extent = seen.maps[name], seen.box[2:]
    top, left, height, width = seen.box
    truth = seen.mask if seen.mask is not None else seen.prediction[top : top + height, left : left + width]
    there = np.bincount(truth[truth != IGNORE].ravel(), minlength=len(classes))[: len(classes)]
    order = sorted(range(len(classes)), key=lambda k: (-there[k], -maps[k].max()))[:MOST]
    names, most = labels(classes, 18), float(maps[order].max())
    word = "there" if seen.mask is not None else "predicted"
    panels = [Panel("image", seen.image)]
    for k in order:
        title = f"{names[k]} ({word if there[k] else 'not ' + word})"
        outline = truth == k if there[k] and truth.shape == (height, width) else None
        panels.append(Panel(title, maps[k], extent, low=0, high=most, root=True, outline=outline))
    return grid(f"{about}\n{CLASS_LINES[name]}", panels, 4, bar=f"{NAMES[name]}: one scale, by the square root")


CLASS_LINES = {
    "class_relation": "share of each class's vector in what a cell gathers, of sum 1 over the classes at each cell",
    "regions": "weight of each cell in a class's vector, of sum 1 over the cells",
}


def single(seen: Explained, name: str, classes: Sequence[str], about: str) -> Figure:
    """One map for all pixels, next to the image."""
    value = seen.maps[name]
    value = value[0] if value.ndim == 3 else value
    return grid(about, [Panel("image", seen.image), Panel(NAMES[name], value, seen.box[2:], low=0)], 2, bar=NAMES[name])


DRAWN: dict[str, Callable[[Explained, str, Sequence[str], str], Figure]] = {
    PARTS: parts, CLASSES: per_class, SINGLE: single
}  # fmt: skip


def unit_pca(seen: Explained, about: str) -> Figure:
    """Input and output of SRNet's unit as colours: the three principal components of both together, as Fig. 8."""
    before, after, explained = principal_colours(seen.maps["unit_input"], seen.maps["unit_output"])
    panels = [
        Panel("image", seen.image),
        Panel("input of the SR unit", before, seen.box[2:]),
        Panel("output of the SR unit", after, seen.box[2:]),
    ]
    line = f"principal components 1 to 3 of input and output together ({explained:.0%} of the variance) as RGB"
    return grid(f"{about}\n{line}", panels, 3)


def principal_colours(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The first three principal components of two maps (C, h, w) together, as RGB uint8 (h, w, 3) each.

    One basis and one scale, from the 1st to the 99th percentile of each component: a colour means the same in both.

    Returns:
        the two pictures, and the share of the variance that they show.
    """
    points = np.concatenate([m.reshape(len(m), -1).T for m in (before, after)]).astype(np.float64)
    points -= points.mean(0)
    values, basis = np.linalg.eigh(points.T @ points)
    shown = points @ basis[:, ::-1][:, :3]
    shown = np.pad(shown, ((0, 0), (0, 3 - shown.shape[1])))
    low, high = np.percentile(shown, [1, 99], axis=0)
    colours = (255 * np.clip((shown - low) / np.maximum(high - low, 1e-12), 0, 1)).round().astype(np.uint8)
    first, second = colours.reshape(2, *before.shape[1:], 3)
    return first, second, float(values[::-1][:3].sum() / max(values.sum(), 1e-300))


def presence(seen: Explained, classes: Sequence[str], about: str) -> Figure:
    """Predicted presence of classes as bars, next to the true shares or which are there."""
    from matplotlib.figure import Figure

    guess = seen.presence if seen.presence is not None else np.zeros(len(classes))
    mask = seen.mask if seen.mask is not None else np.full((1, 1), IGNORE, np.uint8)
    counts = np.bincount(mask[mask != IGNORE].ravel(), minlength=len(classes))[: len(classes)]
    true = counts / max(1, counts.sum())
    order = sorted(range(len(classes)), key=lambda k: -max(float(guess[k]), true[k]))[:15]
    figure = Figure(figsize=(9, 0.32 * len(order) + 1.3), layout="constrained", dpi=100)
    axes, places = figure.subplots(), np.arange(len(order))
    shares = seen.presence_kind == "share"
    axes.barh(places - 0.2, guess[order] * 100, 0.38, color=BLUE, label="predicted")
    if counts.any():
        heights = true[order] * 100 if shares else 100.0 * (true[order] > 0)
        axes.barh(places + 0.2, heights, 0.38, color=ORANGE, label="true" if shares else "there")
    axes.set_yticks(places, np.array(labels(classes))[order], fontsize=9, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("share of the pixels, percent" if shares else "probability of presence, percent", fontsize=9)
    axes.legend(fontsize=9, loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{about}\nclasses that the image holds", fontsize=10, parse_math=False, loc="left")
    return figure
