"""Scores of a whole split, all from one confusion matrix.

torchmetrics' MeanIoU is not used: it averages over images, and the benchmarks' mIoU is over the split's pixels.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

IGNORE = 255


class Confusion:
    """Counts of pixels by true and predicted class, over all batches; counts of parts add up to those of the whole.

    Args:
        num_classes: K.
        ignore: the mask's value for pixels without a label; they are not counted.
    """

    def __init__(self, num_classes: int, *, ignore: int = IGNORE) -> None:
        from torchmetrics.classification import MulticlassConfusionMatrix  # seconds: it loads its plots and signals too

        # Checks of the values stay on: in deterministic mode a class of K or more would silently be lost otherwise.
        self._matrix = MulticlassConfusionMatrix(num_classes, ignore_index=ignore, validate_args=True)

    def to(self, device: torch.device | str) -> Self:
        """Move the counts to a device."""
        self._matrix.to(device)
        return self

    def update(self, prediction: Tensor, mask: Tensor) -> None:
        """Count a batch of class indices, on the device of the counts.

        Args:
            prediction: integers in 0..K−1, (B, H, W).
            mask: uint8, (B, H, W).

        Raises:
            RuntimeError: classes outside 0..K−1 (the mask: that are not `ignore` either).
        """
        self._matrix.update(prediction, mask)

    @property
    def counts(self) -> Tensor:
        """int64 (K, K), rows the truth, columns the prediction; of this process alone."""
        return self._matrix.confmat.clone()


@dataclass(frozen=True)
class Scores:
    """Scores in 0..1, of all labelled pixels together; nan where there is nothing to divide by.

    Attributes:
        miou: mean IoU over the classes that occur in truth or prediction. A class absent from both has no IoU and
            is left out, as in VOC's devkit and torchmetrics' macro average.
        iou: per class, pixels in both truth and prediction over pixels in either.
        accuracy: share of the pixels that are right.
        mean_accuracy: mean recall over the classes that occur in the truth.
        fwiou: IoU weighted by the classes' share of the truth.
        precision, recall: per class.
    """

    miou: float
    iou: list[float]
    accuracy: float
    mean_accuracy: float
    fwiou: float
    precision: list[float]
    recall: list[float]


def scores(counts: Tensor | np.ndarray) -> Scores:
    """All scores from a confusion matrix (K, K), rows the truth.

    Raises:
        ValueError: not a square matrix.
    """
    matrix = np.asarray(counts.cpu() if isinstance(counts, Tensor) else counts, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"counts has shape {matrix.shape}; allowed: (K, K), rows the truth")
    hits, truth, predicted, total = matrix.diagonal(), matrix.sum(1), matrix.sum(0), matrix.sum()
    iou, recall, precision = (ratio(hits, n) for n in (truth + predicted - hits, truth, predicted))
    return Scores(
        miou=mean(iou),
        iou=iou.tolist(),
        accuracy=float(ratio(hits.sum(), total)),
        mean_accuracy=mean(recall),
        fwiou=float(ratio(np.nansum(truth * iou), total)),
        precision=precision.tolist(),
        recall=recall.tolist(),
    )


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, nan where whole is 0."""
    with np.errstate(invalid="ignore"):
        return part / whole


def mean(values: np.ndarray) -> float:
    """Mean of what is not nan; nan if nothing is left."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
