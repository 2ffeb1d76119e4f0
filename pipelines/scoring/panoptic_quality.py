"""Panoptic quality (Kirillov et al., Panoptic Segmentation, CVPR 2019, arXiv:1801.00868) by panopticapi's rules.

A predicted and a true segment of one class match where their IoU is above 0.5; void pixels are left out of the union.
A crowd matches nothing and is not missed. An unmatched prediction counts nothing where more than half of it is void
or a crowd of its class. PQ of a class is the sum of the matches' IoUs over matches + half of what is unmatched; SQ is
their mean IoU, and RQ = PQ / SQ. PQ, SQ and RQ are means over the classes that occur in truth or prediction.

torchmetrics' PanopticQuality knows no crowds, and does not miss a segment of which more than half is predicted as void.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as rle_api

from datasets.sample import Segment
from datasets.tasks.things import things
from pipelines.base.errors import InputError
from pipelines.scoring.scored import Scored

VOID = -1
"""The number of pixels that are of no segment, in truth and prediction."""
ONE = 1 << 32
"""IoUs are summed as integers of this unit: the sum is the same in any order."""
IOU, MATCHED, INVENTED, MISSED = range(4)


def panoptic_counts(pixels: np.ndarray, numbers: Sequence[int], truth: Sequence[Segment], classes: int) -> np.ndarray:
    """One image's part of a split's panoptic quality; parts of images and workers add up.

    Args:
        pixels: the predicted segment of each pixel, 0..n-1, or `VOID`; int (H, W).
        numbers: the class of each predicted segment, n; one without a pixel does not count.
        truth: the true segments; their masks share no pixel.
        classes: K.

    Returns:
        int64 (K, 4): the sum of the matches' IoUs in units of 1 / `ONE`, matches, predictions without one, true
        segments without one.

    Raises:
        ValueError: a pixel of a segment that has no class.
    """
    if pixels.max(initial=VOID) >= len(numbers) or pixels.min(initial=VOID) < VOID:
        raise ValueError(
            f"pixels are of segments {pixels.min()} to {pixels.max()}; allowed are -1 to {len(numbers) - 1}"
        )
    common = overlaps(true_pixels(truth, pixels.shape), pixels, len(truth), len(numbers))
    theirs, ours, void = common.sum(1)[:-1], common.sum(0)[:-1], common[-1, :-1]
    same = np.array([s.number for s in truth], int)[:, None] == np.array(numbers, int)
    crowd = np.array([s.crowd for s in truth], bool)
    inner = common[:-1, :-1]
    union = theirs[:, None] + ours - inner - void
    match = same & ~crowd[:, None] & (2 * inner > union)
    crowds = {segment.number: t for t, segment in enumerate(truth) if segment.crowd}  # one a class, as in COCO
    excused = void + np.array([inner[crowds[n]][p] if n in crowds else 0 for p, n in enumerate(numbers)], np.int64)
    counts = np.zeros((classes, 4), np.int64)
    for t, p in np.argwhere(match).tolist():
        counts[numbers[p], IOU] += round(float(inner[t, p] / union[t, p]) * ONE)
        counts[numbers[p], MATCHED] += 1
    for p in np.flatnonzero((ours > 0) & ~match.any(0) & (2 * excused <= ours)).tolist():
        counts[numbers[p], INVENTED] += 1
    for t in np.flatnonzero(~crowd & ~match.any(1)).tolist():
        counts[truth[t].number, MISSED] += 1
    return counts


def true_pixels(truth: Sequence[Segment], size: tuple[int, ...]) -> np.ndarray:
    """The true segment of each pixel, or `VOID`; int64 of `size`."""
    found = np.full(size, VOID, np.int64)
    for place, segment in enumerate(truth):
        found[rle_api.decode({"size": list(size), "counts": segment.rle}).astype(bool)] = place
    return found


def overlaps(true: np.ndarray, pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Pixels that each true and each predicted segment share, int64 (rows + 1, columns + 1); the last are void."""
    cells = np.where(true < 0, rows, true) * (columns + 1) + np.where(pixels < 0, columns, pixels)
    return np.bincount(cells.ravel(), minlength=(rows + 1) * (columns + 1)).reshape(rows + 1, columns + 1)


def panoptic_scores(counts: np.ndarray, classes: tuple[str, ...], rows: int) -> Scored:
    """The scores of a split; the value is PQ over all classes.

    Args:
        counts: the sum of `panoptic_counts` over the split's rows, int64 (K, 4).
        classes: the manifest's K.
        rows: of the split.

    Raises:
        InputError: nothing was labelled, and nothing predicted.
    """
    there = counts[:, MATCHED:].sum(1) > 0
    if not there.any():
        raise InputError(f"no segment in {rows} rows, in truth or prediction, so there is nothing to score; validate "
                         "on a split of coco_panoptic")  # fmt: skip
    matched, invented, missed = (counts[:, place].astype(float) for place in (MATCHED, INVENTED, MISSED))
    quality = {"SQ": counts[:, IOU] / ONE / np.maximum(matched, 1)}
    quality["RQ"] = matched / np.maximum(matched + 0.5 * invented + 0.5 * missed, 0.5)
    quality["PQ"] = quality["SQ"] * quality["RQ"]
    thing = np.isin(np.arange(len(classes)), things(classes))
    named = {
        f"{name}{kind}": float(quality[name][there & chosen].mean())
        for kind, chosen in (("", thing | True), (" things", thing), (" stuff", ~thing))
        for name in ("PQ", "SQ", "RQ")
        if (there & chosen).any()
    }
    by_class = [float(pq) if is_there else None for pq, is_there in zip(quality["PQ"], there, strict=True)]
    return Scored(named["PQ"], named, by_class, rows)
