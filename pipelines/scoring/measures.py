"""What is counted on demand besides the confusion matrix: outlines, sizes of objects, calibration.

All counts are integers that are summed over images: in any order, over any number of workers, the scores are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.base.machine import cores
from pipelines.runs.results import lined, percent
from pipelines.scoring.boundary import WIDTHS, boundary_counts, f_score, f_score_present, trimap_counts
from pipelines.scoring.calibration import BINS, calibration, calibration_counts
from pipelines.scoring.strata import COLUMNS, SIZES, found_by_size, iou_by_size, recall_by_size, strata_counts
from segmodels.metrics import mean, scores

THREADS = 8  # that count a batch's images, at most


@dataclass(frozen=True)
class Reading:
    """What a measure says of a split.

    Attributes:
        metrics: names below a protocol -> value, shares of 1; nan where there is nothing to divide by.
        page: all of it as JSON.
        lines: for people.
    """

    metrics: Mapping[str, float]
    page: Mapping[str, Any]
    lines: Sequence[str]


@dataclass(frozen=True)
class Measure:
    """A measure: how many integers it sums, what they are of a batch, and what they mean.

    Attributes:
        size: of K classes.
        count: confidence float (B, H, W), prediction and mask uint8 (B, H, W), K -> int64 (size).
        read: their sums, and the class names.
    """

    size: Callable[[int], int]
    count: Callable[[Tensor, Tensor, Tensor, int], np.ndarray | Tensor]
    read: Callable[[np.ndarray, Sequence[str]], Reading]


def measure(names: Sequence[str], probabilities: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
    """The integers of some measures for a batch, one after the other: int64, on the device of the batch.

    Args:
        names: of `MEASURES`.
        probabilities: float32 (B, K, H, W), which sum to 1 over the classes.
        prediction: the likeliest class, int64 (B, H, W).
        mask: uint8 (B, H, W), 255 without a label.
    """
    if not names:
        return torch.zeros(0, dtype=torch.int64, device=mask.device)
    confidence = probabilities.gather(1, prediction[:, None])[:, 0]
    parts = [MEASURES[name].count(confidence, prediction.byte(), mask, probabilities.shape[1]) for name in names]
    return torch.cat([torch.as_tensor(part, device=mask.device) for part in parts])


def read_measures(names: Sequence[str], sums: np.ndarray, classes: Sequence[str]) -> dict[str, Reading]:
    """What measures say of a split, by name.

    Args:
        names: of `MEASURES`, as they were given to `measure`.
        sums: what that gave, summed over all batches.
        classes: K names.
    """
    ends = np.cumsum([MEASURES[name].size(len(classes)) for name in names])
    parts = np.split(sums, ends[:-1]) if names else []
    return {name: MEASURES[name].read(part, classes) for name, part in zip(names, parts, strict=True)}


def image_by_image(count: Callable[..., np.ndarray], prediction: Tensor, mask: Tensor, classes: int) -> np.ndarray:
    """The sum of what is counted of each image.

    OpenCV and NumPy leave Python's lock while they work, so threads help. On CPUs several batches are counted at once
    anyway, each by one thread.
    """
    pairs = list(zip(prediction.cpu().numpy(), mask.cpu().numpy(), strict=True))
    threads = 1 if mask.device.type == "cpu" else min(len(pairs), cores(), THREADS)
    with ThreadPoolExecutor(threads) as pool:
        return np.sum(list(pool.map(lambda pair: count(*pair, classes), pairs)), axis=0)


def outline_counts(prediction: np.ndarray, mask: np.ndarray, classes: int) -> np.ndarray:
    """Those of boundary F-score and trimap IoU, one after the other."""
    parts = (boundary_counts(prediction, mask, classes), trimap_counts(prediction, mask, classes))
    return np.concatenate([part.ravel() for part in parts])


def read_boundary(sums: np.ndarray, classes: Sequence[str]) -> Reading:
    """Boundary F-score of both averages, and trimap IoU, at each width."""
    k = len(classes)
    outlines, trimaps = np.split(sums, [k * (2 + len(WIDTHS))])
    outlines = outlines.reshape(k, -1)
    every, present = f_score(outlines), f_score_present(outlines)
    trimap = np.array([scores(counts).iou for counts in trimaps.reshape(-1, k, k)]).T
    blocks = {"boundaryF": every, "boundaryF_present": present, "trimap_mIoU": trimap}
    metrics = {f"{name}_{w}px": mean(block[:, i]) for name, block in blocks.items() for i, w in enumerate(WIDTHS)}
    page = {"widths_px": WIDTHS, "images": int(outlines[0, 0]), "images_present": outlines[:, 1].tolist(),
            "f": every.tolist(), "f_present": present.tolist(), "trimap_iou": trimap.tolist()}  # fmt: skip
    head = [f"{name} {w}" for name in ("F", "F'", "IoU") for w in WIDTHS]
    note = (
        "In percent, at so many pixels. F: boundary F-score, mean over all images, 100 for one in which neither truth "
        "nor prediction\nhas an outline of the class (OCNet, Table 6); F': mean over the other images; IoU: trimap, of "
        "pixels so near to a change of label."
    )
    return Reading(metrics, page, [*class_table(head, np.hstack([every, present, trimap]), classes), note])


def read_strata(sums: np.ndarray, classes: Sequence[str]) -> Reading:
    """IoU, recall and share of objects found, by size."""
    counts = sums.reshape(len(classes), len(SIZES), len(COLUMNS))
    iou, recall, found = iou_by_size(counts), recall_by_size(counts), found_by_size(counts)
    blocks = {"mIoU": iou, "recall": recall, "found": found}
    metrics = {f"{name}_{size}": mean(block[:, i]) for name, block in blocks.items() for i, size in enumerate(SIZES)}
    page = {"sizes": SIZES, "objects": counts[..., 3].tolist(), "iou": iou.tolist(), "recall": recall.tolist(),
            "found": found.tolist()}  # fmt: skip
    head = [f"{name} {size}" for name in ("IoU", "found") for size in SIZES]
    head += [f"n {size}" for size in SIZES]
    lines = class_table(head, np.hstack([iou, found]), classes, counts[..., 3])
    note = (
        "Objects, n of them, are connected regions of the truth: small below 1/300 of the image, large from 3 %. IoU "
        "in percent,\nfalse pixels by the size of the region predicted; found: share of the objects that have half "
        "their pixels right, in percent."
    )
    return Reading(metrics, page, [*lines, note])


def read_calibration(sums: np.ndarray, classes: Sequence[str]) -> Reading:
    """Expected calibration error, and what it is made of."""
    found = calibration(sums.reshape(BINS, 3))
    gap = found.confidence - found.accuracy
    line = (
        f"calibration: expected error {percent(found.error)} % over {BINS} bins; the predicted class has a mean "
        f"probability of {percent(found.confidence)} %, and is right in {percent(found.accuracy)} % of the pixels: "
        f"{percent(abs(gap))} points {'over' if gap > 0 else 'under'}confident"
    )
    return Reading({"ECE": found.error, "confidence": found.confidence}, asdict(found), [line])


def class_table(
    head: Sequence[str], values: np.ndarray, classes: Sequence[str], numbers: np.ndarray | None = None
) -> list[str]:
    """A line for each class and one for the mean; columns of shares in percent, then some of plain numbers."""
    whole = np.vstack([values, [mean(column) for column in values.T]])
    rows = [[name, *map(percent, line)] for name, line in zip([*classes, "mean"], whole, strict=True)]
    if numbers is not None:
        ends = [*numbers.tolist(), numbers.sum(0).tolist()]
        rows = [[*row, *map(str, end)] for row, end in zip(rows, ends, strict=True)]
    return lined(["class", *head], rows, range(1, len(head) + 1))


MEASURES = {
    "boundary": Measure(
        lambda k: k * (2 + len(WIDTHS)) + len(WIDTHS) * k * k,
        lambda confidence, prediction, mask, k: image_by_image(outline_counts, prediction, mask, k),
        read_boundary,
    ),
    "strata": Measure(
        lambda k: k * len(SIZES) * len(COLUMNS),
        lambda confidence, prediction, mask, k: image_by_image(strata_counts, prediction, mask, k).ravel(),
        read_strata,
    ),
    "calibration": Measure(
        lambda k: BINS * 3,
        lambda confidence, prediction, mask, k: calibration_counts(confidence, prediction, mask).flatten(),
        read_calibration,
    ),
}
