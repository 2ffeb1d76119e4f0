"""Two models on the same rows: what differs, how surely, and on which rows most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipelines.base import pictures
from pipelines.runs.results import lined, percent
from pipelines.scoring.bootstrap import Bounds, Certainty, ClassCounts, certainty, difference
from pipelines.scoring.intervals import NO_DIFFERENCE
from segmodels.metrics import IGNORE

ONLY_A, ONLY_B, NEITHER = (230, 159, 0), (0, 114, 178), (60, 60, 60)  # told apart by the colour-blind (Okabe, Ito)


@dataclass(frozen=True)
class Comparison:
    """Scores of two models, A and B, on a split.

    Attributes:
        a, b: of each, with intervals.
        gain: B's less A's, with intervals from the same draws of images.
        change: of each row, B's less A's mean IoU of the classes in the row's truth; nan for a row without labels.
    """

    a: Certainty
    b: Certainty
    gain: Certainty
    change: np.ndarray


def compare(a: ClassCounts, b: ClassCounts) -> Comparison:
    """Compare two models' counts of the same images in the same order.

    Raises:
        ValueError: their truth differs.
    """
    gain = difference(a, b)
    return Comparison(certainty(a), certainty(b), gain, row_scores(b) - row_scores(a))


def row_scores(counts: ClassCounts) -> np.ndarray:
    """Mean IoU of each row over the classes of its truth, float64 (N); nan for a row without labels."""
    there = counts.truth > 0
    iou = np.where(there, counts.iou(), 0.0)
    with np.errstate(invalid="ignore"):
        return iou.sum(1) / there.sum(1)


def most_changed(change: np.ndarray, number: int) -> tuple[list[int], list[int]]:
    """Rows that lost most, and those that gained most, at most so many each, the farthest first."""
    order = np.argsort(change, kind="stable")  # nan last
    worse = [int(row) for row in order if change[row] < 0][:number]
    return worse, [int(row) for row in order[::-1] if change[row] > 0][:number]


def verdict(gain: Bounds) -> str:
    """What the interval of a gain allows to say."""
    if gain.holds_zero:
        return NO_DIFFERENCE
    return "B is better" if gain.low > 0 else "B is worse"


def span(bounds: Bounds, sign: str = "") -> str:
    """A score and its interval in percent: 71.20 [69.80, 72.55]."""
    value, low, high = (number * 100 for number in (bounds.value, bounds.low, bounds.high))
    if value != value:
        return "–"
    return f"{value:{sign}.2f}" if low != low else f"{value:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def lines_of(found: Comparison, classes: Sequence[str], ids: Sequence[str], number: int) -> list[str]:
    """The comparison for people: classes, mean, verdict, and the rows that changed most."""
    parts = zip(classes, found.a.iou, found.b.iou, found.gain.iou, found.gain.images, strict=True)
    rows = [
        [name, percent(a.value), percent(b.value), span(gain, "+"), "–" if gain.value != gain.value else verdict(gain),
         str(images)] for name, a, b, gain, images in parts
    ]  # fmt: skip
    gain = found.gain.miou
    rows.append(["mIoU", span(found.a.miou), span(found.b.miou), span(gain, "+"), verdict(gain), str(len(ids))])
    worse, better = most_changed(found.change, number)
    told = [f"  {ids[row]}  {found.change[row] * 100:+.2f}" for row in (*better, *reversed(worse))]
    return [
        *lined(["class", "A IoU %", "B IoU %", "B − A", "", "images"], rows, (1, 2, 3, 5)),
        f"B − A: {span(gain, '+')} points of mIoU: {verdict(gain)}.",
        "Intervals: 95 %, bootstrap over images, each for itself; images: those whose truth has the class.",
        f"{(found.change > 0).sum()} of {len(ids)} rows gained, {(found.change < 0).sum()} lost; most (mean IoU of the "
        "classes in the row's truth, B − A, points):",
        *told,
    ]


def page_of(found: Comparison, classes: Sequence[str], ids: Sequence[str]) -> dict[str, Any]:
    """The comparison as JSON."""

    def numbers(bounds: Bounds) -> list[float]:
        return [bounds.value, bounds.low, bounds.high]

    sides = {"a": found.a, "b": found.b, "gain": found.gain}
    scored = {name: {"miou": numbers(side.miou), "iou": [numbers(b) for b in side.iou]} for name, side in sides.items()}
    return scored | {
        "verdict": verdict(found.gain.miou), "classes": list(classes), "images": found.gain.images,
        "rows": dict(zip(ids, found.change.tolist(), strict=True)),
    }  # fmt: skip


def where_right(mask: np.ndarray, a: np.ndarray, b: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Where only A is right (orange), only B (blue), neither (dark): RGB uint8 (H, W, 3), over the faded image."""
    faded = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB) // 4 + 180
    right_a, right_b, labelled = a == mask, b == mask, mask != IGNORE
    for colour, where in ((ONLY_A, right_a & ~right_b), (ONLY_B, right_b & ~right_a), (NEITHER, ~right_a & ~right_b)):
        faded[where & labelled] = colour
    return faded


def draw_row(
    image: np.ndarray, mask: np.ndarray, a: np.ndarray, b: np.ndarray, palette: pictures.Palette, title: str
) -> np.ndarray:
    """Image, truth, A, B and where they are right, side by side with words above: RGB uint8.

    Args:
        image: RGB uint8 (H, W, 3).
        mask: uint8 (H, W), 255 without a label.
        a, b: predictions uint8 (H, W).
        palette: of the classes.
        title: of the row.
    """
    panes = {
        "image": image,
        "truth": pictures.blend(image, mask, palette),
        "A": pictures.blend(image, a, palette),
        "B": pictures.blend(image, b, palette),
        "only A right: orange, only B: blue, neither: dark": where_right(mask, a, b, image),
    }
    width, height = pictures.within(image.shape, 420, 420)
    how = cv2.INTER_AREA if width < image.shape[1] else cv2.INTER_NEAREST
    sheet = np.full((height + 44, len(panes) * (width + 4), 3), 255, np.uint8)
    texts = [(4, 3, pictures.one_line(title))]
    for place, (name, pane) in enumerate(panes.items()):
        left = place * (width + 4)
        sheet[44:, left : left + width] = cv2.resize(pane, (width, height), interpolation=how)
        texts.append((left + 4, 23, name))
    pictures.draw_texts(sheet, texts)
    return sheet


def picture_name(direction: str, place: int, row_id: str) -> Path:
    """The file of a row that changed much: better/1-ID.png."""
    return Path(direction) / f"{place}-{pictures.safe_name(row_id)}.png"
