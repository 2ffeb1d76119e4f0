"""What is counted on demand besides the confusion matrix: outlines, sizes of objects, calibration.

All counts are integers that are summed over images: in any order, over any number of workers, they give the same scores.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
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
    count: Callable[[Tensor, Tensor, Tensor, int], np.ndarray]
    read: Callable[[np.ndarray, Sequence[str]], Reading]


class Counter:
    """Sums of some measures over batches.

    Args:
        names: of `MEASURES`.
        num_classes: K.
    """

    def __init__(self, names: Collection[str], num_classes: int) -> None:
        self.num_classes = num_classes
        self.sums = {name: np.zeros(MEASURES[name].size(num_classes), np.int64) for name in names}

    def update(self, probabilities: Tensor, mask: Tensor) -> None:
        """Count a batch.

        Args:
            probabilities: float32 (B, K, H, W), which sum to 1 over the classes.
            mask: uint8 (B, H, W), 255 without a label.
        """
        if self.sums:
            confidence, prediction = probabilities.max(1)
            for name, sums in self.sums.items():
                sums += MEASURES[name].count(confidence, prediction.byte(), mask, self.num_classes)


def image_by_image(count: Callable[..., np.ndarray], prediction: Tensor, mask: Tensor, classes: int) -> np.ndarray:
    """The sum of what is counted of each image, by threads: OpenCV and NumPy leave Python's lock while they work."""
    pairs = list(zip(prediction.cpu().numpy(), mask.cpu().numpy(), strict=True))
    with ThreadPoolExecutor(min(len(pairs), cores(), THREADS)) as pool:
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
        "Outlines at so many pixels, in percent. F: boundary F-score, mean over all images, 1 for one in which truth and "
        "prediction\nhave no outline of the class (as OCNet, Table 6); F': mean over the others; IoU: of pixels so near "
        "to a change of label (trimap)."
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
    head += [f"{size} objects" for size in SIZES]
    lines = class_table(head, np.hstack([iou, found]), classes, counts[..., 3])
    note = (
        "Objects are connected regions of the truth: small below 1/300 of the image, large from 3 %. IoU in percent, "
        "false pixels by\nthe size of the region predicted; found: of the objects, in percent, those with half their "
        "pixels right."
    )
    return Reading(metrics, page, [*lines, note])


def read_calibration(sums: np.ndarray, classes: Sequence[str]) -> Reading:
    """Expected calibration error, and what it is made of."""
    found = calibration(sums.reshape(BINS, 3))
    gap = found.confidence - found.accuracy
    line = (
        f"calibration: expected error {percent(found.error)} % over {BINS} bins; mean probability of the predicted class "
        f"{percent(found.confidence)} %, right {percent(found.accuracy)} %: "
        f"{percent(abs(gap))} % {'over' if gap > 0 else 'under'}confident"
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


def count_calibration(confidence: Tensor, prediction: Tensor, mask: Tensor, classes: int) -> np.ndarray:
    """Those of `calibration_counts` as one line."""
    return calibration_counts(confidence, prediction, mask).cpu().numpy().ravel()


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
    "calibration": Measure(lambda k: BINS * 3, count_calibration, read_calibration),
}
