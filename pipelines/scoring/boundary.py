"""How well outlines are met: boundary F-score and trimap IoU, each at several widths in pixels.

Boundary F-score, as in DAVIS (Perazzi et al., CVPR 2016), Gated-SCNN and the code of OCNet's authors for Table 6: a
pixel is on a class's outline where its right, lower or lower right neighbour is in the class and it is not, or the
other way round. Precision is the share of the predicted outline with a pixel of the true one within `width` pixels
(Euclidean), recall the share of the true outline with one of the predicted; F is their harmonic mean, of one image and
class. Pixels without a label belong to no class in truth and prediction. F is averaged over images, then over classes;
an image in which a class has neither outline counts as 1, as in that code: `f_score`. So a rare class scores high
unless it is invented; `f_score_present` is the mean over the images in which the class has an outline.

Trimap IoU (Kohli et al., IJCV 2009; DeepLab, PAMI 2018): the split's IoU of the labelled pixels that have a pixel of
another label, or of none, within `width` pixels.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np

from segmodels.metrics import IGNORE

WIDTHS = (3, 5, 9, 12)  # OCNet, Table 6
ONE = 1 << 32  # F-scores are summed as integers of this unit: the sum is the same in any order


@functools.cache
def disk(radius: int) -> np.ndarray:
    """Offsets within a Euclidean radius: uint8 (2 radius + 1, 2 radius + 1)."""
    along = np.arange(-radius, radius + 1) ** 2
    return (along[:, None] + along <= radius * radius).astype(np.uint8)


def outlines(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where classes have outlines.

    Args:
        labels: uint8 (H, W).

    Returns:
        Pixels that differ from one of their neighbours to the right, below or both, flat indices int64 (n), and the
        labels of the four, uint8 (4, n). Such a pixel is on the outline of each class among the four.
    """
    height, width = labels.shape
    wide = np.pad(labels, ((0, 1), (0, 1)), mode="edge")
    four = [wide[y : y + height, x : x + width] for y, x in ((0, 0), (0, 1), (1, 0), (1, 1))]
    places = np.flatnonzero((four[0] != four[1]) | (four[0] != four[2]) | (four[0] != four[3]))
    at = np.unravel_index(places, labels.shape)
    return places, np.stack([neighbour[at] for neighbour in four])


def matches(points: np.ndarray, others: np.ndarray, width: int) -> list[int]:
    """How many points have one of the others within each of `WIDTHS` pixels.

    Args:
        points, others: flat indices into an image, both at least one.
        width: of the image.
    """
    (y, x), (v, u) = np.divmod(points, width), np.divmod(others, width)
    top, left = min(y.min(), v.min()), min(x.min(), u.min())
    canvas = np.zeros((max(y.max(), v.max()) - top + 1, max(x.max(), u.max()) - left + 1), np.uint8)
    canvas[v - top, u - left] = 1
    at = (y - top, x - left)
    return [int(cv2.dilate(canvas, disk(radius))[at].sum()) for radius in WIDTHS]


def boundary_counts(prediction: np.ndarray, mask: np.ndarray, classes: int) -> np.ndarray:
    """One image's part of the boundary F-scores; parts of images add up.

    Args:
        prediction: uint8 (H, W), 0 to K − 1.
        mask: uint8 (H, W), 0 to K − 1, or 255 without a label.
        classes: K.

    Returns:
        int64 (K, 2 + widths): images (1), those where the class has an outline, and the sums of their F in units of
        1 / `ONE`.
    """
    found = np.zeros((classes, 2 + len(WIDTHS)), np.int64)
    found[:, 0] = 1
    (theirs, four), (ours, near) = outlines(np.where(mask == IGNORE, IGNORE, prediction)), outlines(mask)
    for k in sorted({*np.unique(four), *np.unique(near)} - {IGNORE}):
        guessed, true = theirs[(four == k).any(0)], ours[(near == k).any(0)]
        found[k, 1] = 1
        if guessed.size and true.size:
            right, met = (matches(*pair, mask.shape[1]) for pair in ((guessed, true), (true, guessed)))
            for w, (p, t) in enumerate(zip(right, met, strict=True), 2):
                precision, recall = p / guessed.size, t / true.size
                found[k, w] = round(2 * precision * recall / (precision + recall) * ONE) if p and t else 0
    return found


def f_score(counts: np.ndarray) -> np.ndarray:
    """F of each class and width, float64 (K, widths): the mean over all images, 1 for one without an outline."""
    images, present, sums = counts[:, :1], counts[:, 1:2], counts[:, 2:]
    return (sums / ONE + images - present) / np.maximum(images, 1)


def f_score_present(counts: np.ndarray) -> np.ndarray:
    """F of each class and width, float64 (K, widths): the mean over the images with an outline of it, nan for none."""
    with np.errstate(invalid="ignore"):
        return counts[:, 2:] / ONE / counts[:, 1:2]


def trimap_counts(prediction: np.ndarray, mask: np.ndarray, classes: int) -> np.ndarray:
    """One image's confusion counts near the truth's label changes: int64 (widths, K, K), rows truth.

    Args:
        prediction, mask, classes: as of `boundary_counts`.
    """
    found = np.zeros((len(WIDTHS), classes * classes), np.int64)
    cell = mask.astype(np.int32) * classes + prediction
    labelled = mask != IGNORE
    for w, radius in enumerate(WIDTHS):
        near = (cv2.dilate(mask, disk(radius)) != cv2.erode(mask, disk(radius))) & labelled
        found[w] = np.bincount(cell[near], minlength=classes * classes)
    return found.reshape(len(WIDTHS), classes, classes)
