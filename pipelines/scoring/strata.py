"""Scores of small, middle and large objects of each class.

An object is a connected region of a class in the truth mask (8 neighbours; pixels without a label part regions). It is
small below 1/300 of its image's pixels, large from 3 % on: COCO's 32² and 96² pixels (Lin et al., ECCV 2014) in an
image of 640x480, as shares, so that they mean the same at every size of image.

A pixel of the truth counts where its object counts; a pixel that is wrongly predicted as the class counts with the size
of the predicted region that it is in. So the counts of the three sizes add up to those of the class.
"""

from __future__ import annotations

import cv2
import numpy as np

from segmodels.metrics import IGNORE

SIZES = ("small", "middle", "large")
COLUMNS = ("truth", "hits", "wrong", "objects", "found")
VGA = 640 * 480


def size_of(areas: np.ndarray, pixels: int) -> np.ndarray:
    """0, 1 or 2 for small, middle or large.

    Args:
        areas: of objects, in pixels.
        pixels: of their image.
    """
    shares = np.asarray(areas, np.int64) * VGA
    return (shares >= 32 * 32 * pixels).astype(np.int64) + (shares >= 96 * 96 * pixels)


def strata_counts(prediction: np.ndarray, mask: np.ndarray, classes: int) -> np.ndarray:
    """One image's counts by class and size; those of images add up.

    Args:
        prediction: uint8 (H, W), 0 to K − 1.
        mask: uint8 (H, W), 0 to K − 1, or 255 without a label.
        classes: K.

    Returns:
        int64 (K, 3, 5), the last by `COLUMNS`: pixels of the truth, those of them that are right, pixels wrongly
        predicted as the class, objects, and objects of which at least half the pixels are right.
    """
    found = np.zeros((classes, len(SIZES), len(COLUMNS)), np.int64)
    guess = np.where(mask == IGNORE, IGNORE, prediction)
    for k in np.flatnonzero(np.bincount(np.concatenate([mask.ravel(), guess.ravel()]), minlength=classes)[:classes]):
        true, guessed = mask == k, guess == k
        if true.any():
            areas, hits, sizes = regions(true, guessed)
            for column, values in enumerate((areas, hits, None, np.ones_like(areas), 2 * hits >= areas)):
                if values is not None:
                    found[k, :, column] = np.bincount(sizes, values, len(SIZES)).astype(np.int64)
        if (guessed & ~true).any():
            _, wrong, sizes = regions(guessed, ~true)
            found[k, :, 2] = np.bincount(sizes, wrong, len(SIZES)).astype(np.int64)
    return found


def regions(where: np.ndarray, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Area, pixels that are also `counted`, and size of each connected region of a bool mask (H, W)."""
    left, top, width, height = cv2.boundingRect(where.view(np.uint8))
    box = (slice(top, top + height), slice(left, left + width))
    many, labels, stats, _ = cv2.connectedComponentsWithStats(where.view(np.uint8)[box], connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA].astype(np.int64)
    both = np.bincount(labels[where[box] & counted[box]], minlength=many)[1:]
    return areas, both, size_of(areas, where.size)


def iou_by_size(counts: np.ndarray) -> np.ndarray:
    """IoU of each class and size, float64 (K, 3); nan without objects in the truth, whatever small specks are wrong."""
    truth, hits, wrong = (np.asarray(counts[..., column], np.float64) for column in range(3))
    return np.divide(hits, truth + wrong, out=np.full(truth.shape, np.nan), where=truth > 0)


def recall_by_size(counts: np.ndarray) -> np.ndarray:
    """Share of the truth's pixels that are right, of each class and size, float64 (K, 3); nan without objects."""
    with np.errstate(invalid="ignore"):
        return counts[..., 1] / np.asarray(counts[..., 0], np.float64)


def found_by_size(counts: np.ndarray) -> np.ndarray:
    """Share of the objects of which at least half is right, of each class and size, float64 (K, 3)."""
    with np.errstate(invalid="ignore"):
        return counts[..., 4] / np.asarray(counts[..., 3], np.float64)
