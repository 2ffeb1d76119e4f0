"""Pictures that people judge a run by: overlays, confusion matrix, IoU bars, contact sheets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from pipelines.base.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Palette = Sequence[Sequence[int]]


def safe_name(sample_id: str) -> str:
    """A sample id as a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", sample_id)


def write_png(path: Path, image: np.ndarray) -> str:
    """Write RGB uint8 (H, W, 3); returns the path."""
    with replacing(path) as temporary:
        if not cv2.imwrite(str(temporary), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
            raise OSError(f"cannot write the picture {path}")
    return str(path)


def save_counts(path: Path, counts: np.ndarray) -> str:
    """Write the confusion counts as .npy; returns the path."""
    with replacing(path) as temporary:
        np.save(temporary, counts)
    return str(path)


def colour(mask: np.ndarray, palette: Palette) -> np.ndarray:
    """Mask uint8 (H, W) in the palette's colours, ignored pixels white: RGB uint8 (H, W, 3)."""
    table = np.full((256, 3), 255, np.uint8)
    table[: len(palette)] = np.array(palette, np.uint8)
    return table[mask]


def blend(image: np.ndarray, mask: np.ndarray, palette: Palette, share: float = 0.6) -> np.ndarray:
    """The coloured mask over the image: RGB uint8 (H, W, 3)."""
    return cv2.addWeighted(colour(mask, palette), share, image, 1 - share, 0)


def save_overlay(path: Path, image: np.ndarray, mask: np.ndarray, prediction: np.ndarray, palette: Palette) -> str:
    """image | truth | prediction side by side, at least 240 pixels high."""
    truth, guess = blend(image, mask, palette), blend(image, np.where(mask == 255, 255, prediction), palette)
    bar = np.full((image.shape[0], 4, 3), 255, np.uint8)
    row = np.hstack([image, bar, truth, bar, guess])
    factor = max(1, round(240 / row.shape[0]))
    return write_png(path, cv2.resize(row, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST))


def contact_sheet(
    samples: Iterable[tuple[str, np.ndarray, np.ndarray | None]],
    classes: Sequence[str],
    palette: Palette,
    columns: int = 4,
    width: int = 320,
) -> np.ndarray:
    """A grid of images, each above its coloured mask, with ids and a legend: RGB uint8 (H, W, 3)."""
    cells = []
    for name, image, mask in samples:
        height = round(width * image.shape[0] / image.shape[1])
        shown = [cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)]
        if mask is not None:
            shown.append(cv2.resize(blend(image, mask, palette), (width, height), interpolation=cv2.INTER_NEAREST))
        title = np.full((20, width, 3), 255, np.uint8)
        cv2.putText(title, name[-40:], (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
        cells.append(np.vstack([title, *shown]))
    tallest = max(cell.shape[0] for cell in cells)
    cells = [np.pad(cell, ((0, tallest - len(cell)), (2, 2), (0, 0)), constant_values=255) for cell in cells]
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % columns)
    rows = [np.hstack(cells[i : i + columns]) for i in range(0, len(cells), columns)]
    return np.vstack([*rows, legend(classes, palette, rows[0].shape[1])])


def legend(classes: Sequence[str], palette: Palette, width: int) -> np.ndarray:
    """Colour patches with class names, as many to a line as fit."""
    per_line = max(1, width // 160)
    lines = -(-(len(classes) + 1) // per_line)
    sheet = np.full((lines * 22 + 6, width, 3), 255, np.uint8)
    for i, (name, rgb) in enumerate(zip([*classes, "ignored"], [*palette, (255, 255, 255)], strict=True)):
        x, y = i % per_line * 160 + 4, i // per_line * 22 + 4
        cv2.rectangle(sheet, (x, y), (x + 16, y + 16), tuple(map(int, rgb)), -1)
        cv2.rectangle(sheet, (x, y), (x + 16, y + 16), (0, 0, 0), 1)
        cv2.putText(sheet, name[:18], (x + 22, y + 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return sheet


def new_figure(width: float, height: float) -> tuple[Figure, Any]:
    """A figure that needs no screen and no global state of pyplot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def confusion_figure(counts: np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """Rows of the confusion matrix as shares of the true class."""
    size = max(5.0, 0.32 * len(classes) + 2)
    figure, axes = new_figure(size + 1, size)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    picture = axes.imshow(shares, cmap="magma", vmin=0, vmax=1)
    figure.colorbar(picture, shrink=0.8, label="share of the true class's pixels")
    axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=8)
    axes.set_yticks(range(len(classes)), classes, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title, fontsize=9)
    return figure


def iou_figure(iou: Sequence[float], classes: Sequence[str], title: str) -> Figure:
    """IoU of each class as bars; classes absent from truth and prediction are named so."""
    figure, axes = new_figure(7, max(3.0, 0.25 * len(classes) + 1))
    values = np.array(iou, float)
    present = np.nan_to_num(values) * 100
    bars = axes.barh(range(len(classes)), present, color="#3b6ea5")
    labels = ["absent" if np.isnan(v) else f"{v * 100:.1f}" for v in values]
    axes.bar_label(bars, labels, padding=3, fontsize=8)
    axes.set_yticks(range(len(classes)), classes, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 108)
    axes.set_xlabel("IoU, percent")
    axes.set_title(title, fontsize=9)
    return figure
