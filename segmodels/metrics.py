"""Scores of a whole split, all from one confusion matrix.

The matrix is counted here; torchmetrics is the tests' independent reference. Importing any part of it loads all of
it, with SciPy's signals and matplotlib: 1.5 s of processor time in each worker on top of the model's own imports.
Its confusion matrix takes four times as long on a CPU, and counts a class of K or more as another class.
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
        self.num_classes, self.ignore = num_classes, ignore
        self._counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def to(self, device: torch.device | str) -> Self:
        """Move the counts to a device."""
        self._counts = self._counts.to(device)
        return self

    def update(self, prediction: Tensor, mask: Tensor) -> None:
        """Count a batch of class indices, on the device of the counts.

        Args:
            prediction: integers in 0..K−1, (B, H, W).
            mask: uint8, (B, H, W).

        Raises:
            ValueError: the shapes differ.
            RuntimeError: classes outside 0..K−1 (in the mask, `ignore` is allowed too).
        """
        k = self.num_classes
        counted = torch.bincount(cells(prediction, mask, k, self.ignore).flatten(), minlength=k * k + 1)
        self._counts += counted[:-1].view(k, k)

    @property
    def counts(self) -> Tensor:
        """int64 (K, K), rows the truth, columns the prediction; of this process only."""
        return self._counts.clone()


def cells(prediction: Tensor, mask: Tensor, num_classes: int, ignore: int = IGNORE) -> Tensor:
    """The cell of the confusion matrix that each pixel counts in: K · truth + prediction, K² without a label.

    Args:
        prediction: integers in 0..K−1, (B, H, W).
        mask: uint8, (B, H, W).
        num_classes: K.
        ignore: the mask's value for pixels without a label.

    Returns:
        int64 (B, H, W).

    Raises:
        ValueError: the shapes differ.
        RuntimeError: classes outside 0..K−1 (in the mask, `ignore` is allowed too).
    """
    if prediction.shape != mask.shape:
        raise ValueError(f"prediction has shape {tuple(prediction.shape)}; allowed: the mask's {tuple(mask.shape)}")
    k, p, t = num_classes, prediction.long(), mask.long()
    labelled = t != ignore
    wrong = (p < 0) | (p >= k) | (((t < 0) | (t >= k)) & labelled)
    if count := int(wrong.sum()):
        raise RuntimeError(
            f"prediction or mask: a class outside of 0 to {k - 1}, in {count} of {t.numel()} pixels; "
            f"allowed: those classes, and {ignore} in the mask. Set num_classes to the data's"
        )
    return (k * t + p).where(labelled, k * k)


@dataclass(frozen=True)
class Scores:
    """Scores in 0..1, of all labelled pixels together; nan where there is nothing to divide by.

    Attributes:
        miou: mean IoU over the classes that occur in truth or prediction. A class absent from both has no IoU and
            is left out, as in torchmetrics' macro average. VOC's devkit divides 0 by 0 there, and its mean is NaN.
        iou: per class, pixels in both truth and prediction over pixels in either.
        accuracy: share of the pixels that are right.
        mean_accuracy: mean recall over the classes that occur in the truth.
        fwiou: IoU weighted by the classes' share of the truth.
        precision, recall: per class.
        f1: per class, the harmonic mean of precision and recall, which is the Dice coefficient of its pixels.
        mean_f1: over the classes that have one, those of `miou`.
    """

    miou: float
    iou: list[float]
    accuracy: float
    mean_accuracy: float
    fwiou: float
    precision: list[float]
    recall: list[float]
    f1: list[float]
    mean_f1: float


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
    f1 = ratio(2 * hits, truth + predicted)
    return Scores(
        miou=mean(iou),
        iou=iou.tolist(),
        accuracy=float(ratio(hits.sum(), total)),
        mean_accuracy=mean(recall),
        fwiou=float(ratio(np.nansum(truth * iou), total)),
        precision=precision.tolist(),
        recall=recall.tolist(),
        f1=f1.tolist(),
        mean_f1=mean(f1),
    )


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, nan where whole is 0."""
    with np.errstate(invalid="ignore"):
        return part / whole


def mean(values: np.ndarray) -> float:
    """Mean of what is not nan; nan if nothing is left."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
