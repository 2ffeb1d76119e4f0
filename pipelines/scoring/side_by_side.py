"""Two models on one image: their predictions next to each other, the regions marked where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from datasets.sample import IGNORE
from pipelines.base.pictures import Palette
from pipelines.scoring.panels import BLUE, GREEN, ORANGE, PINK, Panel, grid, mask_panel, painted
from pipelines.scoring.subject import Subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKED = 5  # regions
SMALLEST = 0.002  # of the image's pixels: smaller regions are not marked

Region = tuple[int, int, int, int]


def differing(one: np.ndarray, other: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Where two predictions differ, bool (H, W); pixels without a label do not count, where there are labels."""
    return (one != other) & ((mask != IGNORE) if mask is not None else True)


def regions(where: np.ndarray, most: int = MARKED) -> list[Region]:
    """Boxes (left, top, width, height) of the largest connected parts, largest first."""
    _, _, facts, _ = cv2.connectedComponentsWithStats(where.astype(np.uint8), connectivity=8)
    parts = sorted(facts[1:].tolist(), key=lambda fact: -fact[cv2.CC_STAT_AREA])[:most]
    return [(x, y, w, h) for x, y, w, h, area in parts if area >= SMALLEST * where.size]


def compare(
    subject: Subject, one: np.ndarray, other: np.ndarray, names: tuple[str, str], classes: Sequence[str],
    palette: Palette, about: str,
) -> Figure:  # fmt: skip
    """Image, truth, both predictions, and who is right where they differ.

    Args:
        subject: the image.
        one, other: predictions uint8 (H, W).
        names: of the two models.
        classes: K names.
        palette: K colours.
        about: for the title.
    """
    mask = subject.mask
    where = differing(one, other, mask)
    boxes = regions(where)
    panels: list[Panel] = [Panel("image", subject.image, boxes=boxes)]
    if mask is not None:
        panels.append(mask_panel("truth (white: no label)", subject.image, mask, classes, palette, boxes=boxes))
    for name, guess in zip(names, (one, other), strict=True):
        known = guess if mask is None else np.where(mask == IGNORE, IGNORE, guess).astype(np.uint8)
        panels.append(mask_panel(name, subject.image, known, classes, palette, boxes=boxes))
    panels += [Panel(title, picture, boxes=boxes) for title, picture in verdicts(subject, one, other, where)]
    line = f"they differ at {where.mean():.1%} of the pixels; boxes: the largest of these regions"
    return grid(f"{about}\n{line}", panels, 3 if mask is not None else 2)


def verdicts(subject: Subject, one: np.ndarray, other: np.ndarray, where: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Titles and pictures of where the two differ: who is right, and where both are wrong; without labels, where."""
    mask, image = subject.mask, subject.image
    if mask is None:
        return [("they differ (pink)", painted(image, [(where, PINK)]))]
    only_one, only_other = where & (one == mask), where & (other == mask)
    both = (one != mask) & (other != mask) & (mask != IGNORE)
    unlabelled = (mask == IGNORE, "#FFFFFF")
    labelled = max(1, int((mask != IGNORE).sum()))
    shares = [f"{part.sum() / labelled:.1%}" for part in (only_one, only_other, both & where, both & ~where)]
    first = f"only first right (blue) {shares[0]}\nonly second right (orange) {shares[1]}"
    second = f"both wrong: unlike (pink) {shares[2]}\nalike (green) {shares[3]}"
    return [
        (first, painted(image, [(only_one, BLUE), (only_other, ORANGE), unlabelled])),
        (second, painted(image, [(both & where, PINK), (both & ~where, GREEN), unlabelled])),
    ]
