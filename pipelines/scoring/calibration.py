"""Whether a model's probabilities are what they say: of the pixels predicted with 0.8, are 80 % right?

Expected calibration error (Naeini et al., AAAI 2015; Guo et al., ICML 2017, Eq. 5): labelled pixels are sorted by the
probability of their predicted class into 15 bins of equal width, (0, 1/15] and so on; the error is the mean over the
pixels of the distance between a bin's accuracy and its mean probability. All pixels of the split count once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pipelines.base.pictures import new_figure, set_title
from segmodels.metrics import IGNORE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 15
ONE = 1 << 24  # probabilities are summed as integers of this unit, float32's own: the sum is the same in any order


@dataclass(frozen=True)
class Calibration:
    """Of a split.

    Attributes:
        error: expected calibration error, 0 to 1.
        confidence: mean probability of the predicted class; above the accuracy, the model claims too much.
        accuracy: share of the pixels that are right.
        pixels: of each bin.
        bin_confidence, bin_accuracy: of each bin, nan for one without pixels.
    """

    error: float
    confidence: float
    accuracy: float
    pixels: list[int]
    bin_confidence: list[float]
    bin_accuracy: list[float]


def calibration_counts(confidence: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
    """Pixels, right ones, and summed probabilities in units of 1 / `ONE`, of each bin: int64 (15, 3), on their device.

    Args:
        confidence: probability of the predicted class, float (B, H, W).
        prediction: that class, integers (B, H, W).
        mask: uint8 (B, H, W), 255 without a label.
    """
    labelled = mask != IGNORE
    sure, right = confidence[labelled].double(), prediction[labelled] == mask[labelled]
    bins = (sure * BINS).ceil().long().sub_(1).clamp_(0, BINS - 1)
    units = (sure * ONE).round()
    # float64 adds integers exactly up to 2^53: in any order, also on a GPU, whose bincount with weights has none
    columns = (torch.ones_like(units), right.double(), units)
    return torch.stack([torch.bincount(bins, column, BINS).long() for column in columns], 1)


def calibration(counts: np.ndarray) -> Calibration:
    """The scores of summed counts int64 (15, 3)."""
    pixels, right, units = np.asarray(counts, np.float64).T
    with np.errstate(invalid="ignore"):
        accuracy, confidence = right / pixels, units / ONE / pixels
        total = np.float64(pixels.sum())
        return Calibration(
            error=float(np.nansum(pixels * np.abs(accuracy - confidence)) / total),
            confidence=float(units.sum() / ONE / total),
            accuracy=float(right.sum() / total),
            pixels=pixels.astype(np.int64).tolist(),
            bin_confidence=confidence.tolist(),
            bin_accuracy=accuracy.tolist(),
        )


def reliability_figure(found: Calibration, title: str) -> Figure:
    """The reliability diagram: accuracy of each bin beside the diagonal, and the bins' shares of the pixels."""
    figure, axes = new_figure(6, 5.5)
    left, width = np.arange(BINS) / BINS, 1 / BINS
    accuracy = np.nan_to_num(found.bin_accuracy)
    shares = np.array(found.pixels) / max(sum(found.pixels), 1)
    axes.bar(
        left, accuracy, width, align="edge", color="#3b6ea5", edgecolor="white", label="right, of the bin's pixels"
    )
    axes.bar(left + width * 0.3, shares, width * 0.4, align="edge", color="#e69f00", label="share of all pixels")
    axes.plot(found.bin_confidence, found.bin_accuracy, "o", color="black", markersize=4, label="at the bin's mean")
    axes.plot([0, 1], [0, 1], "--", color="black", linewidth=1, label="as it should be")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the predicted class", ylabel="share")
    axes.legend(loc="upper left", fontsize=8)
    words = f"expected calibration error {found.error * 100:.2f} %\n{title}"
    set_title(axes, words, 5.5)
    return figure
